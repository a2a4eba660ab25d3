"""The model in each runtime: the same answers; and what only GPUs need, as far as it can be tried on a CPU."""

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from export.cheaper import Wanted
from export.export import export
from serving.runtime import SPARE_SLOTS, Answer, Model, check_model, warm_up_sizes
from tailstack.artifact import INPUT, LEARNER_PROBABILITIES, LEARNERS_USED, PROBABILITIES, Artifact
from tailstack.engine import open_engine
from tailstack.engine_onnxruntime import OnnxRuntimeEngine, padded_size, run_bound
from tailstack.errors import UserError
from tailstack.images import Pixels
from tailstack.session import CPU
from tests.serving.conftest import encoded, running, web

OUTPUTS = (PROBABILITIES, LEARNER_PROBABILITIES)
BOTH = ("onnxruntime", "openvino")
TOLERANCE = 1e-4
"""Of probabilities: the runtimes add in other orders."""


def external(content: bytes, location: str) -> bytes:
    """Move the largest tensor of a model to another file."""
    model = onnx.ModelProto.FromString(content)
    tensor = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return model.SerializeToString()


def foreign(content: bytes) -> bytes:
    """Give a model an operator that no runtime has."""
    model = onnx.ModelProto.FromString(content)
    model.graph.node[0].domain = "com.example"
    model.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    return model.SerializeToString()


BROKEN: dict[str, tuple[Callable[[bytes, Path], bytes], str]] = {
    "empty": (lambda content, folder: b"", "not a Tailstack model"),
    "noise": (lambda content, folder: bytes(range(256)) * 1000, "can't be loaded by OpenVINO"),
    "cut short": (lambda content, folder: content[:-1000], "can't be loaded by OpenVINO"),
    "foreign operator": (lambda content, folder: foreign(content), "operator that OpenVINO doesn't know: com.example"),
    "data beside it": (lambda content, folder: external(content, "weights.bin"), "has to be one file"),
    "data above it": (lambda content, folder: external(content, "../weights.bin"), "has to be one file"),
    "data anywhere": (lambda content, folder: external(content, str(folder / "weights.bin")), "has to be one file"),
}


def pixels(batch: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(batch).integers(0, 256, (batch, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def cascade(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cascade") / "ensemble.onnx"
    artifact = export(small_run, path, Wanted(cascade=True, max_accuracy_drop=60))
    assert artifact.cascade is not None
    assert set(artifact.cascade.temperatures) != {1.0}  # by which its nodes read an output, too
    return path


@pytest.mark.parametrize("batch", [0, 1, 2, 3, 5, 17])
def test_both_runtimes_give_the_same_answers(tiny_model: Path, batch: int) -> None:
    theirs, ours = (open_engine(tiny_model, name).run(pixels(batch), OUTPUTS) for name in BOTH)
    for wanted, found in zip(theirs, ours, strict=True):
        assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
        np.testing.assert_allclose(found, wanted, atol=TOLERANCE)


@pytest.mark.parametrize("batch", [0, 1, 7])
def test_both_runtimes_ask_the_same_learners_of_a_cascade(cascade: Path, batch: int) -> None:
    outputs = (*OUTPUTS, LEARNERS_USED)
    theirs, ours = (open_engine(cascade, name).run(pixels(batch), outputs) for name in BOTH)
    np.testing.assert_array_equal(ours[2], theirs[2])
    for wanted, found in zip(theirs[:2], ours[:2], strict=True):
        np.testing.assert_allclose(found, wanted, atol=TOLERANCE)


def test_both_runtimes_read_the_same_metadata(tiny_model: Path) -> None:
    first, second = (open_engine(tiny_model, name) for name in BOTH)
    assert Artifact.from_properties(first.properties, "") == Artifact.from_properties(second.properties, "")
    assert first.types == second.types == {INPUT: "uint8", PROBABILITIES: "float32", LEARNER_PROBABILITIES: "float32"}
    assert [engine.runtime.split()[0] for engine in (first, second)] == list(BOTH)
    assert first.on_cpu and second.on_cpu


def test_threads_share_one_openvino_engine(tiny_model: Path) -> None:
    model = Model.load(tiny_model, "cpu", threads=2, max_batch=4, runtime="openvino")
    batches = [pixels(1 + number % 5) for number in range(40)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda images: model.classify(images, alone=False).probabilities, batches))
    for images, answer in zip(batches, found, strict=True):
        np.testing.assert_allclose(answer, model.classify(images).probabilities, atol=1e-5)


def test_the_server_runs_openvino(tiny_model: Path, tmp_path: Path) -> None:
    with running(tiny_model, tmp_path, TAILSTACK_RUNTIME="openvino") as server:
        model = web.get(f"{server.address}/model").json()
        assert model["runtime"].startswith("openvino ")
        assert model["execution_provider"] == "CPU"
        name = model["name"]
        assert web.get(f"{server.address}/v2/models/{name}").json()["platform"] == "openvino_onnx"
        answer = web.post(f"{server.address}/classify", content=encoded("PNG"))
        assert answer.status_code == 200
        assert len(answer.json()["predictions"]) == 5


def test_openvino_is_for_cpus(tiny_model: Path) -> None:
    with pytest.raises(UserError, match="device cuda needs the runtime onnxruntime"):
        open_engine(tiny_model, "openvino", "cuda")


def test_openvino_that_is_missing_is_said_so(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UserError, match=r"pip install 'tailstack\[openvino\]'"):
        open_engine(tiny_model, "openvino")


@pytest.mark.parametrize("kind", BROKEN)
def test_openvino_refuses_what_cannot_be_served(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    make, says = BROKEN[kind]
    (tmp_path / "weights.bin").write_bytes(bytes(10_000_000))
    (tmp_path / "ensemble.onnx").write_bytes(make(tiny_model.read_bytes(), tmp_path))
    with pytest.raises(UserError, match=says) as error:
        check_model(tmp_path / "ensemble.onnx", "openvino")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_bound_batches_give_the_same_answers(tiny_model: Path, batch: int) -> None:
    engine = OnnxRuntimeEngine.open(tiny_model, "cpu")
    bound, plain = run_bound(engine.session, pixels(batch), OUTPUTS), engine.run(pixels(batch), OUTPUTS)
    for found, wanted in zip(bound, plain, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert engine.provider == CPU


@pytest.mark.parametrize("max_batch", [1, 2, 12, 16])
def test_a_gpu_has_seen_every_size_before_the_first_request(max_batch: int) -> None:
    sizes = warm_up_sizes(False, max_batch)
    assert set(sizes) == {padded_size(batch) for batch in range(1, max_batch + 1)}
    assert len(set(sizes)) == len(sizes)
    assert sizes[:2] == sorted({1, padded_size(max_batch)})
    assert warm_up_sizes(True, max_batch) == sorted({1, max_batch})


def test_every_slot_has_run_the_largest_batch_before_the_first_request(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the runtime takes for them it keeps: a worker takes it when it loads, not at its busiest moment."""
    threads, largest = 2, 4
    together = Barrier(threads + SPARE_SLOTS)
    classify = Model.classify

    def meet(model: Model, images: Pixels, *, alone: bool = True) -> Answer:
        if not alone:
            assert len(images) == largest
            together.wait(timeout=60)
        return classify(model, images, alone=alone)

    monkeypatch.setattr(Model, "classify", meet)
    Model.load(tiny_model, "cpu", threads, largest)
    assert not together.broken
