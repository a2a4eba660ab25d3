"""Each figure against scikit-learn's and torchmetrics' on the same predictions."""

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from tailstack.metrics import (
    CALIBRATION_BINS,
    Accuracy,
    class_balanced,
    confusion,
    evaluate,
    expected_calibration_error,
    negative_log_likelihood,
    reliability,
    top_k,
)

TOLERANCE = 1e-6
Predictions = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.int64]]


@st.composite
def predictions(draw: st.DrawFn) -> Predictions:
    """Probabilities `[images, classes]`, labels and training counts, from nearly uniform to nearly certain."""
    classes, images = draw(st.integers(2, 30)), draw(st.integers(1, 200))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logits = rng.normal(size=(images, classes)) * draw(st.sampled_from([0.1, 1.0, 8.0]))
    # Few of the classes, so that some are never the truth and some never the answer.
    labels = rng.integers(0, draw(st.integers(1, classes)), images)
    logits[np.arange(images), labels] += draw(st.sampled_from([0.0, 2.0]))
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return probabilities.astype(np.float32), labels, rng.integers(0, 300, classes)


def figures(case: Predictions) -> Accuracy:
    probabilities, labels, counts = case
    return evaluate(probabilities, labels, [f"c{i}" for i in range(probabilities.shape[1])], counts)


def close(ours: float | None, theirs: float) -> bool:
    return ours is not None and math.isclose(ours, theirs, rel_tol=0, abs_tol=TOLERANCE)


@given(predictions())
@settings(max_examples=150, deadline=None)
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true", "ignore:A single label was found")
def test_figures_are_those_of_scikit_learn(case: Predictions) -> None:
    probabilities, labels, counts = case
    found, predicted = figures(case), probabilities.argmax(axis=1)
    classes = np.arange(probabilities.shape[1])
    assert close(found["top1"], sk.accuracy_score(labels, predicted))
    assert close(found["balanced"], sk.balanced_accuracy_score(labels, predicted))
    assert close(found["macro_f1"], sk.f1_score(labels, predicted, average="macro", zero_division=0))
    if len(classes) > 5:  # of five classes, scikit-learn has no top five
        assert close(found["top5"], sk.top_k_accuracy_score(labels, probabilities, k=5, labels=classes))
    # scikit-learn cuts probabilities off at float32's epsilon, and refuses rows that don't sum to 1.
    safe = np.maximum(probabilities.astype(np.float64), 1e-6)
    safe /= safe.sum(axis=1, keepdims=True)
    assert close(negative_log_likelihood(safe, labels), sk.log_loss(labels, safe, labels=classes))
    assert np.array_equal(confusion(probabilities, labels), sk.confusion_matrix(labels, predicted, labels=classes))
    recall = sk.recall_score(labels, predicted, labels=classes, average=None, zero_division=np.nan)
    precision = sk.precision_score(labels, predicted, labels=classes, average=None, zero_division=np.nan)
    for index, entry in enumerate(found["per_class"]):
        assert (entry["train_images"], entry["test_images"]) == (counts[index], (labels == index).sum())
        for ours, theirs in ((entry["accuracy"], recall[index]), (entry["precision"], precision[index])):
            assert ours is None if np.isnan(theirs) else close(ours, theirs)
    for name, members in (
        ("many", counts > 100),
        ("medium", (counts >= 20) & (counts <= 100)),
        ("few", counts < 20),
    ):
        rates = recall[members & ~np.isnan(recall)]
        assert found[name] is None if len(rates) == 0 else close(found[name], rates.mean())


@given(predictions())
@settings(max_examples=50, deadline=None)
def test_figures_are_those_of_torchmetrics(case: Predictions) -> None:
    import torch
    from torchmetrics.functional.classification import (
        multiclass_accuracy,
        multiclass_calibration_error,
        multiclass_confusion_matrix,
        multiclass_f1_score,
        multiclass_precision,
        multiclass_recall,
    )

    probabilities, labels, _ = case
    found, classes = figures(case), probabilities.shape[1]
    scores, target = torch.from_numpy(probabilities), torch.from_numpy(labels)
    assert close(found["top1"], multiclass_accuracy(scores, target, classes, average="micro").item())
    assert close(found["macro_f1"], multiclass_f1_score(scores, target, classes, average="macro").item())
    top5 = multiclass_accuracy(scores, target, classes, top_k=min(5, classes), average="micro")
    assert close(found["top5"], top5.item())
    assert np.array_equal(
        confusion(probabilities, labels), multiclass_confusion_matrix(scores, target, classes).numpy()
    )
    recall = multiclass_recall(scores, target, classes, average="none").numpy()
    precision = multiclass_precision(scores, target, classes, average="none").numpy()
    for index, entry in enumerate(found["per_class"]):
        assert entry["accuracy"] is None or close(entry["accuracy"], recall[index])
        assert entry["precision"] is None or close(entry["precision"], precision[index])
    # Sums in float32 are alone off by more than 1e-6; so what sums gets float64.
    logarithms = scores.double().clamp_min(float(np.finfo(np.float32).tiny)).log()
    assert close(found["nll"], torch.nn.functional.nll_loss(logarithms, target).item())
    theirs = multiclass_calibration_error(scores.double(), target, classes, n_bins=15, norm="l1")
    assert close(found["ece"], theirs.item())


@given(predictions())
@settings(max_examples=50, deadline=None)
def test_reliability_is_that_of_scikit_learn(case: Predictions) -> None:
    probabilities, labels, _ = case
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    found = reliability(probabilities, labels)
    accuracy, mean = calibration_curve(right, confidence, n_bins=CALIBRATION_BINS, pos_label=True)
    assert np.allclose([item["accuracy"] for item in found], accuracy, rtol=0, atol=TOLERANCE)
    assert np.allclose([item["confidence"] for item in found], mean, rtol=0, atol=TOLERANCE)


def test_figures_worked_out_by_hand() -> None:
    probabilities = np.array([[0.8, 0.1, 0.1], [0.4, 0.5, 0.1], [0.1, 0.6, 0.3], [0.2, 0.3, 0.5]])
    labels, counts = np.array([0, 0, 1, 2]), np.array([101, 20, 19])
    found = evaluate(probabilities, labels, ["a", "b", "c"], counts)
    assert found["top1"] == 0.75
    assert found["top5"] == 1.0
    assert (found["many"], found["medium"], found["few"]) == (0.5, 1.0, 1.0)
    assert close(found["balanced"], 2.5 / 3)
    assert close(found["macro_f1"], (2 / 3 + 2 / 3 + 1) / 3)
    assert close(found["nll"], -np.log([0.8, 0.4, 0.6, 0.5]).mean())
    # The bins: 0.8 right; 0.5 wrong and 0.5 right; 0.6 right.
    assert close(found["ece"], (0.2 + abs(1 - 1.0) + 0.4) / 4)


def test_a_figure_that_the_data_cannot_give_is_none() -> None:
    found = evaluate(np.array([[0.9, 0.1]]), np.array([0]), ["a", "b"], np.array([50, 5]))
    assert found["medium"] == 1.0
    assert found["many"] is None
    assert found["few"] is None
    assert found["per_class"][1] == {
        "label": "b",
        "train_images": 5,
        "test_images": 0,
        "accuracy": None,
        "precision": None,
    }


def test_a_certain_and_wrong_answer_has_a_finite_nll() -> None:
    found = evaluate(np.array([[1.0, 0.0]]), np.array([1]), ["a", "b"], np.array([1, 1]))
    assert math.isfinite(found["nll"])
    assert found["nll"] > 80


def test_more_than_all_classes_are_all_classes() -> None:
    assert top_k(np.array([[0.9, 0.1]]), np.array([1]), 2) == 1.0


def test_confidence_on_the_edge_of_a_bin() -> None:
    # 1.0 and 1/15 lie in the bins that they close.
    probabilities = np.array([[1.0, 0.0], [0.5, 0.5]])
    assert close(expected_calibration_error(probabilities, np.array([0, 0])), 0.25)


def test_an_image_of_weight_two_counts_as_two() -> None:
    rng = np.random.default_rng(0)
    probabilities, labels = rng.dirichlet(np.ones(3), 40), rng.integers(0, 3, 40)
    weights = rng.integers(1, 4, 40)
    repeated, theirs = np.repeat(probabilities, weights, axis=0), np.repeat(labels, weights)
    found = expected_calibration_error(probabilities, labels, weights=weights / 7)
    assert close(found, expected_calibration_error(repeated, theirs))
    for one, other in zip(
        reliability(probabilities, labels, weights=weights / 7), reliability(repeated, theirs), strict=True
    ):
        assert one["confidence"] == pytest.approx(other["confidence"])
        assert one["accuracy"] == pytest.approx(other["accuracy"])


def test_class_balanced_weights() -> None:
    np.testing.assert_allclose(class_balanced(np.array([0, 0, 2])), [0.25, 0.25, 0.5])
