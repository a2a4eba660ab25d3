"""The long tail: imbalance profiles, and splits that keep every class."""

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


def exponential_profile(largest: int, num_classes: int, ratio: float) -> Indices:
    """Return how many images each class keeps, int64 `[num_classes]`: from `largest` down to `largest * ratio`.

    The profile of Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss", NeurIPS 2019.
    """
    steps = np.arange(num_classes) / max(num_classes - 1, 1)
    # A product such as 500 * 0.1 may come out a hair under the whole number that is meant.
    return np.maximum(np.floor(largest * ratio**steps + 1e-9), 1).astype(np.int64)


def imbalanced_subset(labels: Indices, num_classes: int, ratio: float, seed: int) -> Indices:
    """Draw a long-tailed subset.

    Args:
        labels: label of each image, `[images]`.
        num_classes: number of classes; they keep their order, the first is the largest.
        ratio: smallest class / largest class.
        seed: decides which images of a class stay.

    Returns:
        Sorted positions in `labels` of the images that stay: two a class at least. A class that has fewer than its
        share keeps all.
    """
    largest = int(np.bincount(labels, minlength=num_classes).max())
    keep = exponential_profile(largest, num_classes, ratio)
    rng = np.random.default_rng(seed)
    # Fewer than two can't be both trained on and validated.
    keep = np.maximum(keep, 2)
    chosen = [rng.permutation(np.flatnonzero(labels == c))[: keep[c]] for c in range(num_classes)]
    return np.sort(np.concatenate(chosen))


def stratified_split(labels: Indices, fraction: float, seed: int, *, at_least: int = 0) -> tuple[Indices, Indices]:
    """Hold out `fraction` of each class, rounded, but `at_least` so many, and never the whole class.

    Returns:
        Sorted positions of what stays and of what is held out.
    """
    rng = np.random.default_rng(seed)
    held: list[Indices] = [np.empty(0, dtype=np.int64)]
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        held.append(members[: min(max(round(len(members) * fraction), at_least), len(members) - 1)])
    out = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), out), out
