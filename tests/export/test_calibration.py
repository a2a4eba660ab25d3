"""The last temperature: found again where it is known, left out where it doesn't help, and the same in the graph."""

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper
from scipy.special import softmax

from export.calibration import Calibration, fit_calibration
from tailstack.artifact import LEARNERS_USED, PROBABILITIES
from tailstack.blend import tempered
from tailstack.metrics import expected_calibration_error

CLASSES, LEARNERS = 5, 3


def truth(images: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities, labels that are drawn from them, and votes of 1 to 3 learners."""
    rng = np.random.default_rng(seed)
    probabilities = softmax(rng.normal(0, 2, (images, CLASSES)), axis=1).astype(np.float32)
    labels = (probabilities.cumsum(axis=1) > rng.random((images, 1))).argmax(axis=1)
    votes = np.repeat(probabilities[:, None], LEARNERS, axis=1)
    return probabilities, labels, votes * (np.arange(LEARNERS) < rng.integers(1, 4, images)[:, None])[:, :, None]


def test_each_number_of_learners_gets_its_temperature_back() -> None:
    probabilities, labels, votes = truth(9000)
    wanted = (0.6, 1.0, 1.7)
    # What is divided by the inverse was made so sharp, or so flat.
    distorted = Calibration(tuple(1 / value for value in wanted)).apply(probabilities, votes)
    found = fit_calibration(distorted, votes, labels, LEARNERS)
    assert found.temperatures == pytest.approx(wanted, rel=0.06)
    np.testing.assert_allclose(found.apply(distorted, votes), probabilities, atol=0.03)
    assert expected_calibration_error(found.apply(distorted, votes), labels) < 0.02


def test_one_temperature_for_a_plain_graph() -> None:
    probabilities, labels, votes = truth(6000)
    found = fit_calibration(tempered(probabilities, np.array([0.5])), votes, labels, 1)
    assert found.temperatures == pytest.approx((2.0,), rel=0.06)


def test_rare_classes_count_as_much_as_frequent_ones() -> None:
    # 900 images of class 0 are right with 0.9; 100 of class 1 are right in 6 of 10 cases, and claim 0.9 too.
    labels = np.array([0] * 900 + [1] * 100)
    claimed = np.array([0] * 810 + [1] * 90 + [1] * 60 + [0] * 40)
    probabilities = np.where(np.arange(2) == claimed[:, None], 0.9, 0.1).astype(np.float32)
    found = fit_calibration(probabilities, probabilities[:, None], labels, 1).temperatures[0]
    # The calibration error of all images together, which are nearly all of class 0, would rise.
    assert found > 1.5
    even = fit_calibration(probabilities[800:], probabilities[800:, None], labels[800:], 1).temperatures[0]
    # Both classes are right in half of the cases on average.
    assert even > 1.5


def test_classes_count_by_their_share_of_the_mix() -> None:
    # Right for a mix of 9 to 1, and asked about both classes alike: not too sure, which is no fault of its sharpness.
    rng = np.random.default_rng(0)
    labels = np.arange(8000) % 2
    seen = rng.normal(2.0 * labels, 1.0)
    probabilities = softmax(np.stack([np.full(8000, np.log(0.9)), np.log(0.1) + 2 * seen - 2], axis=1), axis=1)
    answers = probabilities.astype(np.float32)
    assert fit_calibration(answers, answers[:, None], labels, 1).temperatures[0] > 1.1
    assert fit_calibration(answers, answers[:, None], labels, 1, [9, 1]).temperatures[0] == pytest.approx(1, abs=0.05)


def test_too_few_images_or_no_help_leave_answers_alone() -> None:
    probabilities, labels, votes = truth(9)
    assert fit_calibration(tempered(probabilities, np.array([0.3])), votes, labels, 1).temperatures == (1.0,)
    sure = np.eye(CLASSES, dtype=np.float32)[np.arange(200) % CLASSES]
    assert fit_calibration(sure, sure[:, None], np.arange(200) % CLASSES, 1).temperatures == (1.0,)


@pytest.mark.parametrize("temperatures", [(1.4,), (1.0,), (0.5, 1.0, 2.0)])
@pytest.mark.parametrize("images", [0, 1, 7])
def test_the_graph_answers_as_numpy_does(temperatures: tuple[float, ...], images: int) -> None:
    probabilities, _, votes = truth(images)
    probabilities[:1] = np.eye(CLASSES)[-1]
    inputs = [
        helper.make_tensor_value_info("given", TensorProto.FLOAT, ["batch", CLASSES]),
        helper.make_tensor_value_info("used", TensorProto.INT64, ["batch"]),
    ]
    outputs = [
        helper.make_tensor_value_info(PROBABILITIES, TensorProto.FLOAT, ["batch", CLASSES]),
        helper.make_tensor_value_info(LEARNERS_USED, TensorProto.INT64, ["batch"]),
    ]
    pairs = (("given", PROBABILITIES), ("used", LEARNERS_USED))
    nodes = [helper.make_node("Identity", [source], [target]) for source, target in pairs]
    graph = helper.make_graph(nodes, "graph", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    calibration = Calibration(temperatures)
    calibration.append_to(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    [found] = session.run([PROBABILITIES], {"given": probabilities, "used": votes.any(axis=2).sum(axis=1)})
    assert found.shape == probabilities.shape
    np.testing.assert_allclose(found, calibration.apply(probabilities, votes), atol=1e-6)
