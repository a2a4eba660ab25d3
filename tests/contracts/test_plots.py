"""What a figure shows where it can't show all."""

import numpy as np

from tailstack.plots import NAMED, confusion_order


def test_the_classes_of_the_lowest_accuracy_were_tested() -> None:
    classes = NAMED + 10
    rng = np.random.default_rng(0)
    accuracy = rng.uniform(0.1, 0.9, classes)
    matrix = np.diag(accuracy)
    matrix[np.arange(classes), np.roll(np.arange(classes), 1)] = 1 - accuracy
    counts = rng.integers(1, 500, classes)
    untested = [3, 50, 69]
    matrix[untested] = 0
    tested = np.setdiff1d(np.arange(classes), untested)
    shown = confusion_order(matrix, counts)
    assert set(shown) == set(tested[np.argsort(accuracy[tested])[:NAMED]])
    assert (np.diff(counts[shown]) <= 0).all()
    matrix[: classes - 5] = 0
    assert len(confusion_order(matrix, counts)) == 4
    assert len(confusion_order(np.zeros((3, 3)), np.array([1, 3, 2]))) == 3
