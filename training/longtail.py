"""The long tail: imbalance profiles, and splits that keep every class."""

import numpy as np
import numpy.typing as npt

from tailstack.errors import UserError

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
    chosen = [rng.permutation(members)[: keep[c]] for c, members in enumerate(_by_class(labels, num_classes))]
    return np.sort(np.concatenate(chosen))


def stratified_split(labels: Indices, fraction: float, seed: int, *, at_least: int = 0) -> tuple[Indices, Indices]:
    """Hold out `fraction` of each class, rounded, but `at_least` so many, and never the whole class.

    Returns:
        Sorted positions of what stays and of what is held out.
    """
    rng = np.random.default_rng(seed)
    held: list[Indices] = [np.empty(0, dtype=np.int64)]
    for images in _by_class(labels, len(np.bincount(labels))):
        if not len(images):
            continue
        members = rng.permutation(images)
        held.append(members[: min(max(round(len(members) * fraction), at_least), len(members) - 1)])
    out = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), out), out


def balanced_copies(labels: Indices, threshold: int, seed: int) -> Indices:
    """Copy or thin out the images of each class until it has about `threshold`: artificial balancing.

    The rate of a class is threshold / count. Its whole part copies every image so many times; the fraction is the
    chance of each image to get one copy more.

    Returns:
        Sorted positions in `labels`; one that stands there twice is a copy.
    """
    rng = np.random.default_rng(seed)
    counts = np.bincount(labels)
    rates = threshold / np.maximum(counts, 1)[labels]
    copies = np.floor(rates).astype(np.int64)
    copies += rng.random(len(labels)) < rates - copies
    # A class that the draw left without any image keeps one.
    for label in np.flatnonzero((counts > 0) & (np.bincount(labels, weights=copies) == 0)):
        copies[rng.choice(np.flatnonzero(labels == label))] = 1
    return np.repeat(np.arange(len(labels)), copies)


def bags(labels: Indices, threshold: int, seed: int, *, by_median: bool = True) -> list[Indices]:
    """Deal the images of the majority classes out into bags, and put those of the minority into each.

    Args:
        labels: label of each image, `[images]`.
        threshold: there are (largest class) // threshold bags.
        seed: decides which images of the majority share a bag.
        by_median: the majority are the classes above the median count, else those above `threshold`.

    Returns:
        Sorted positions in `labels` of each bag.

    Raises:
        UserError: the threshold makes no bags.
    """
    counts = np.bincount(labels)
    number = int(counts.max()) // threshold
    if number < 1:
        raise UserError(f"--threshold {threshold} makes no bags: the largest class has {counts.max()} images")
    limit = np.median(counts[counts > 0]) if by_median else threshold
    is_majority = (counts > limit)[labels]
    minority = np.flatnonzero(~is_majority)
    majority = np.random.default_rng(seed).permutation(np.flatnonzero(is_majority))
    return [np.sort(np.concatenate([minority, majority[k::number]])) for k in range(number)]


def _by_class(labels: Indices, num_classes: int) -> list[Indices]:
    """Return the sorted positions of each class's images."""
    # One look at the labels for all classes: one for each takes seconds for thousands of classes and a million images.
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.cumsum(np.bincount(labels, minlength=num_classes))[:-1])
