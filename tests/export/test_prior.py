"""The optional input `class_prior`: the graph's answers are those of `tailstack.prior`, and right for the mix."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from scipy.special import softmax

from export.export import export
from export.prior import accept_prior
from tailstack import datastore as datastores
from tailstack.artifact import CLASS_PRIOR, INPUT, PROBABILITIES, Artifact
from tailstack.engine import open_engine
from tailstack.prior import reweighted
from tailstack.run import RunRecord
from tests.conftest import PRIOR

CLASSES = 5
SHARES = np.array([50, 1, 1, 0, 8, 40], np.float32)


@pytest.fixture(scope="module")
def images(tiny_datastore: Path) -> np.ndarray:
    test = datastores.load(tiny_datastore).test
    return np.stack([test.decode(index) for index in range(9)])


@pytest.fixture(scope="module")
def session(tiny_model: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(tiny_model, providers=["CPUExecutionProvider"])


def graph(own: np.ndarray) -> onnxruntime.InferenceSession:
    """A graph that answers what it is given, and takes a prior."""
    inputs = [helper.make_tensor_value_info("given", TensorProto.FLOAT, ["batch", CLASSES])]
    outputs = [helper.make_tensor_value_info(PROBABILITIES, TensorProto.FLOAT, ["batch", CLASSES])]
    nodes = [helper.make_node("Identity", ["given"], [PROBABILITIES])]
    opsets = [helper.make_opsetid("", 18)]
    model = helper.make_model(helper.make_graph(nodes, "g", inputs, outputs), opset_imports=opsets, ir_version=10)
    accept_prior(model, own)
    onnx.checker.check_model(model, full_check=True)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("batch", [0, 1, 7])
def test_the_graph_answers_as_numpy_does(batch: int) -> None:
    rng = np.random.default_rng(batch)
    own = softmax(rng.normal(size=CLASSES))
    shares = np.array([3, 0, 1e-6, 10, 2], np.float32)
    given = softmax(rng.normal(0, 3, (batch, CLASSES)), axis=1).astype(np.float32)
    given[:1] = np.eye(CLASSES)[1]  # sure of the class that is ruled out
    session = graph(own)
    [found] = session.run([PROBABILITIES], {"given": given, CLASS_PRIOR: shares})
    np.testing.assert_allclose(found, reweighted(given, shares, own), atol=1e-6)
    [default] = session.run([PROBABILITIES], {"given": given})
    np.testing.assert_allclose(default, given, atol=1e-6)


@given(st.integers(0, 2**32 - 1))
def test_answers_are_right_for_the_mix(seed: int) -> None:
    """By Bayes' rule, from likelihoods that are known."""
    rng = np.random.default_rng(seed)
    likelihoods = rng.uniform(0.01, 1, (20, CLASSES))
    own, mix = softmax(rng.normal(size=(2, CLASSES)), axis=1)
    before, after = ((likelihoods * prior) / (likelihoods @ prior)[:, None] for prior in (own, mix))
    np.testing.assert_allclose(reweighted(before.astype(np.float32), 100 * mix, own), after, atol=1e-5)


def test_an_exported_file_takes_a_prior(session: onnxruntime.InferenceSession, images: np.ndarray) -> None:
    [optional] = session.get_overridable_initializers()
    assert (optional.name, optional.shape) == (CLASS_PRIOR, [len(PRIOR)])
    [own] = session.run([PROBABILITIES], {INPUT: images})
    [found] = session.run([PROBABILITIES], {INPUT: images, CLASS_PRIOR: SHARES})
    np.testing.assert_allclose(found, reweighted(own, SHARES, np.array(PRIOR)), atol=1e-5)
    assert not np.array_equal(found.argmax(axis=1), own.argmax(axis=1))
    [same] = session.run([PROBABILITIES], {INPUT: images, CLASS_PRIOR: 7 * np.array(PRIOR, np.float32)})
    np.testing.assert_allclose(same, own, atol=1e-6)


def test_openvino_gives_the_default_answers(
    session: onnxruntime.InferenceSession, tiny_model: Path, images: np.ndarray
) -> None:
    engine = open_engine(tiny_model, "openvino", "cpu", 1)
    assert set(engine.types) == {INPUT, PROBABILITIES, "learner_probabilities"}
    [own] = session.run([PROBABILITIES], {INPUT: images})
    np.testing.assert_allclose(engine.run(images, [PROBABILITIES])[0], own, atol=1e-4)


def test_a_run_whose_learners_know_no_mix_makes_a_file_without_the_input(small_run: Path, tmp_path: Path) -> None:
    record = RunRecord.load(small_run)
    assert record.prior == pytest.approx(PRIOR)
    record.learners[1].prior = None
    assert record.prior is None
    run = tmp_path / "run"
    run.mkdir()
    for part in ("learners", "split.json"):
        (run / part).symlink_to(small_run / part)
    record.save(run)
    assert export(run, tmp_path / "a.onnx").prior is None
    found = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    assert not found.get_overridable_initializers()
    assert Artifact.from_properties(found.get_modelmeta().custom_metadata_map, "a").prior is None


def test_the_learners_mixes_count_by_their_weights(small_run: Path) -> None:
    record = RunRecord.load(small_run)
    record.learners[0].prior = [1.0, 0, 0, 0, 0, 0]
    record.learners[1].prior = [0, 1.0, 0, 0, 0, 0]
    assert record.prior == pytest.approx([0.6, 0.4, 0, 0, 0, 0])
