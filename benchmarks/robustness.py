"""Accuracy on corrupted test images, by corruption and severity."""

import statistics
from typing import Any

import numpy as np

from benchmarks.accuracy import BATCH
from benchmarks.corruptions import CORRUPTIONS, SEVERITIES, corrupt, is_small
from benchmarks.predictors import Predict
from tailstack.datastore import Split
from tailstack.images import Pixels, Size
from tailstack.metrics import Labels, top_k
from tailstack.progress import track


def measure_corruptions(predict: Predict, test: Split, size: Size, images: int) -> dict[str, Any]:
    """Classify test images under each corruption at each severity.

    Args:
        predict: what answers.
        test: the split.
        size: height and width that the model takes; images are corrupted at this size.
        images: how many, spread over the split; all, where it has fewer.

    Returns:
        Top-1 by corruption and severity, the means, and top-1 of the same images as they are.
    """
    places = test.spread(min(images, len(test)))
    photos, labels = test.decode_batch(places, size), test.labels[places]
    plan = [(name, severity) for name in CORRUPTIONS for severity in SEVERITIES]
    top1: dict[str, list[float]] = {name: [] for name in CORRUPTIONS}
    for name, severity in track(plan, "Corruptions", len(plan)):
        changed = np.stack(
            [corrupt(photo, name, severity, int(place)) for photo, place in zip(photos, places, strict=True)]
        )
        top1[name].append(_top1(predict, changed, labels))
    return {
        "images": len(photos),
        "parameters_of": "CIFAR-10-C" if is_small(photos[0]) else "ImageNet-C",
        "clean": _top1(predict, photos, labels),
        "mean": statistics.mean(value for values in top1.values() for value in values),
        "by_corruption": {
            name: {"category": CORRUPTIONS[name].category, "top1": values, "mean": statistics.mean(values)}
            for name, values in top1.items()
        },
    }


def _top1(predict: Predict, images: Pixels, labels: Labels) -> float:
    batches = [predict(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
    return top_k(np.concatenate(batches), labels, 1)
