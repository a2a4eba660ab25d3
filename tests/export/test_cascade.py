"""The cascade: its graph answers as its reference does, its thresholds keep the limits, and its file serves."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from export import search
from export.cascade import Cascade, partial_means, shares_seen
from export.cheaper import Wanted
from export.export import export
from export.fusion import fuse
from export.gate import Judge
from export.graph import build_learner_graph
from export.risk import StopRisk
from export.thresholds import NEVER_SURE, choose_cascade
from serving.batcher import split
from serving.protocol import Options, image_result
from serving.runtime import Model
from tailstack.artifact import Artifact
from tailstack.blend import Blend
from tailstack.errors import UserError
from tailstack.run import SPLIT_FILE
from tests.conftest import CLASSES, ROOT, SIZE, SMALL_LEARNERS

Array = npt.NDArray[np.float32]
MANY = 8


class Small(nn.Module):
    """A learner that takes no time to export: resized pixels, one convolution, one linear layer."""

    def __init__(self, resolution: int) -> None:
        super().__init__()
        self.resolution = resolution
        self.convolution = nn.Conv2d(3, 4, 3, stride=2)
        self.head = nn.Linear(4, len(CLASSES))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pixels = images.permute(0, 3, 1, 2).float() / 64 - 2
        size = (self.resolution, self.resolution)
        pixels = nn.functional.interpolate(pixels, size=size, mode="bilinear", antialias=True)
        return self.head(self.convolution(pixels).relu().amax((2, 3))) * 3


@pytest.fixture(scope="module")
def small_learners() -> tuple[list[Small], list[onnx.ModelProto]]:
    torch.manual_seed(0)
    networks = [Small(resolution).eval() for resolution in (16, 32, 20, 40, 12, 32, 24, 48)]
    return networks, [build_learner_graph(network, (SIZE, SIZE)) for network in networks]


@pytest.fixture(scope="module")
def cascade_file(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    output = tmp_path_factory.mktemp("cascade") / "cheap.onnx"
    command = [sys.executable, "-m", "export", str(small_run), "--output", str(output), "--cascade"]
    done = subprocess.run(
        [*command, "--max_accuracy_drop", "40"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return output, done.stdout


def pixels(count: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Images of noise, each of its own brightness and contrast."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(
        rng.uniform(30, 220, (count, 1, 1, 3)), rng.uniform(5, 90, (count, 1, 1, 3)), (count, SIZE, SIZE, 3)
    )
    return noise.clip(0, 255).astype(np.uint8)


def votes_of(networks: list[Small], images: npt.NDArray[np.uint8]) -> Array:
    with torch.inference_mode():
        logits = torch.stack([network(torch.from_numpy(images)) for network in networks], dim=1)
    return torch.softmax(logits, dim=2).numpy()


def middling(votes: Array, blend: Blend, order: tuple[int, ...]) -> tuple[float, ...]:
    """Thresholds that about half of the images pass at each stage."""
    means = partial_means(votes, blend.weights, order)
    return tuple(float(np.median(means[:, stage].max(axis=1))) + 1e-4 for stage in range(len(order) - 1))


def random_votes(images: int, learners: int, seed: int = 0) -> tuple[Array, npt.NDArray[np.int64]]:
    """Votes of learners that are right more often the later they come, and the labels."""
    rng = np.random.default_rng(seed)
    labels = np.tile(np.arange(len(CLASSES)), images // len(CLASSES) + 1)[:images]
    logits = rng.normal(0, 1.5, (images, learners, len(CLASSES)))
    logits[np.arange(images), :, labels] += np.linspace(2, 4, learners)
    exponent = np.exp(logits)
    return (exponent / exponent.sum(axis=2, keepdims=True)).astype(np.float32), labels


def judge_of(votes: Array, labels: npt.NDArray[np.int64], blend: Blend, max_drop: float) -> Judge:
    return Judge(blend.apply(votes), votes, labels, CLASSES, np.array([200, 150, 50, 30, 10, 5]), max_drop)


@pytest.mark.parametrize("count", range(1, MANY + 1))
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_graph_answers_as_the_reference_does_at_any_batch_size(
    small_learners: tuple[list[Small], list[onnx.ModelProto]], count: int, temperature: float
) -> None:
    networks, graphs = (part[:count] for part in small_learners)
    rng = np.random.default_rng(count)
    blend = Blend(tuple(rng.dirichlet(np.full(count, 5.0))), temperature)
    order = tuple(int(learner) for learner in rng.permutation(count))
    cascade = Cascade(order, middling(votes_of(networks, pixels(60)), blend, order))
    model = fuse(graphs, blend, cascade, (SIZE, SIZE), len(CLASSES))
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    seen = set()
    for batch in (0, 1, 2, 3, 7, 33, 60):
        images = pixels(60)[:batch]
        answers = session.run(["probabilities", "learner_probabilities", "learners_used"], {"images": images})
        expected = cascade.run(votes_of(networks, images), blend)
        for found, wanted in zip(answers, expected, strict=True):
            assert found.shape == wanted.shape
            assert found.dtype == wanted.dtype
            np.testing.assert_allclose(found, wanted, atol=1e-5)
        seen |= set(answers[2].tolist())
    assert seen == set(range(1, count + 1)) if count <= 4 else len(seen) > 3


def test_later_learners_stand_in_branches_with_their_weights(
    small_learners: tuple[list[Small], list[onnx.ModelProto]],
) -> None:
    _, graphs = (part[:3] for part in small_learners)
    cascade = Cascade((1, 0, 2), (0.5, 0.5))
    graph = fuse(graphs, Blend((0.5, 0.3, 0.2), 1.0), cascade, (SIZE, SIZE), len(CLASSES)).graph
    for learner in cascade.order:
        weights = {f"learner{learner}/{tensor.name}" for tensor in graphs[learner].graph.initializer}
        assert weights <= {tensor.name for tensor in graph.initializer}
        branches = [node for node in graph.node if node.op_type == "If"]
        assert len(branches) == (learner != cascade.order[-1])
        if branches:
            (graph,) = (item.g for item in branches[0].attribute if item.name == "then_branch")


def test_the_plain_graph_is_the_plain_average(small_learners: tuple[list[Small], list[onnx.ModelProto]]) -> None:
    networks, graphs = (part[:3] for part in small_learners)
    blend = Blend((0.5, 0.3, 0.2), 1.3)
    model = fuse(graphs, blend, None, (SIZE, SIZE), len(CLASSES))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == ["probabilities", "learner_probabilities"]
    votes = votes_of(networks, pixels(9))
    found = session.run(None, {"images": pixels(9)})
    np.testing.assert_allclose(found[0], blend.apply(votes), atol=1e-5)
    np.testing.assert_allclose(found[1], votes, atol=1e-5)


def test_when_nobody_is_sure_the_answer_is_the_plain_ensembles() -> None:
    votes, _ = random_votes(50, 3)
    blend = Blend((0.5, 0.3, 0.2), 1.3)
    answers, seen, used = Cascade((2, 0, 1), (NEVER_SURE, NEVER_SURE)).run(votes, blend)
    np.testing.assert_allclose(answers, blend.apply(votes), atol=1e-6)
    assert np.array_equal(seen, votes)
    assert (used == 3).all()


def test_when_the_first_is_always_sure_nobody_else_is_asked() -> None:
    votes, _ = random_votes(50, 3)
    answers, seen, used = Cascade((2, 0, 1), (0.0, 0.0)).run(votes, Blend((0.5, 0.3, 0.2), 1.0))
    np.testing.assert_allclose(answers, votes[:, 2], atol=1e-6)
    assert not seen[:, :2].any()
    assert (used == 1).all()


@pytest.mark.parametrize("learners", [1, 2, 3, 5])
def test_thresholds_save_what_the_limits_allow_and_no_more(learners: int) -> None:
    votes, labels = random_votes(600, learners)
    blend = Blend((1 / learners,) * learners, 1.0)
    costs = [float(1 + learner) for learner in range(learners)][::-1]
    used = []
    for max_drop in (0.0, 0.5, 5.0):
        judge = judge_of(votes, labels, blend, max_drop)
        cascade = choose_cascade(votes, blend, costs, judge)
        assert cascade is not None
        assert cascade.order == tuple(range(learners))[::-1]
        answers, _, counts = cascade.run(votes, blend)
        assert judge.objections(answers, stops_judged=True) == []
        means = partial_means(votes, blend.weights, cascade.order)
        shares = shares_seen(blend.weights, cascade.order)
        assert StopRisk.fit(means, shares, judge).bound(counts) <= max_drop
        used.append(counts.mean())
    assert used == sorted(used, reverse=True)
    assert learners == 1 or used[-1] < 0.8 * learners


def test_the_judge_names_what_falls() -> None:
    votes, labels = random_votes(600, 2)
    blend = Blend((0.5, 0.5), 1.0)
    judge = judge_of(votes, labels, blend, 0.3)
    assert judge.objections(judge.plain) == []
    assert judge.expected_drop(judge.plain) == 0
    wrong = np.roll(judge.plain, 1, axis=1)
    found = "; ".join(judge.objections(wrong))
    for name in ("top-1", "balanced accuracy", "ensemble expects", "few-shot", "ECE"):
        assert name in found


def test_labels_object_only_where_they_are_sure() -> None:
    # Ten classes of ten images each, that the ensemble is nearly undecided about: it expects to lose next to nothing.
    labels = np.repeat(np.arange(10), 10)
    plain = np.full((100, 10), 0.001)
    plain[np.arange(100), labels] = 0.5
    plain[np.arange(100), (labels + 1) % 10] = 0.492
    judge = Judge(
        plain, plain[:, None], labels, [str(label) for label in range(10)], np.array([200] * 9 + [5]), max_drop=2.5
    )

    def without(images: list[int]) -> Array:
        answers = plain.copy()
        answers[images] = answers[images][:, np.r_[9, :9]]
        return answers.astype(np.float32)

    # Of all images 3 points are lost: the standard error is 1.7, so at least 0.8. 6: it is 2.4, so at least 3.0.
    assert judge.objections(without([0, 10, 20])) == []
    top1, balanced = judge.objections(without([0, 10, 20, 30, 40, 50]))
    assert top1.startswith("top-1 (90% sure) falls by 2.96 points")
    assert balanced.startswith("balanced accuracy (90% sure) falls by 2.96 points")
    # In the one few-shot class 10 points are lost of 1 image, at least -2.2; 20 of 2, at least 3.8.
    assert judge.objections(without([90])) == []
    [few] = judge.objections(without([90, 95]))
    assert few.startswith("few-shot accuracy (90% sure) falls by 3.79 points (limit 2.5)")


def test_a_calibration_error_that_is_of_one_class_mix_alone_is_no_objection() -> None:
    # 900 images of class 0 are right with 0.9, 100 of class 1 with 0.6: on average 0.87, and 0.75 where classes count.
    labels = np.array([0] * 900 + [1] * 100)
    claimed = np.array([0] * 810 + [1] * 90 + [1] * 60 + [0] * 40)

    def sure(confidence: float) -> Array:
        return np.where(np.arange(2) == claimed[:, None], confidence, 1 - confidence).astype(np.float32)

    judge = Judge(sure(0.87), sure(0.87)[:, None], labels, ["a", "b"], np.array([200, 50]), max_drop=0.3)
    assert judge.objections(sure(0.75)) == []
    [objection] = judge.objections(sure(0.99))
    assert objection == "the calibration error (ECE) grows by 0.120 (limit 0.02)"


def test_the_bound_on_the_drop_is_above_its_mean_and_closer_with_more_images() -> None:
    blend = Blend((0.5, 0.5), 1.0)
    gaps = []
    for repeat in (1, 4):
        votes, labels = (np.concatenate([part] * repeat) for part in random_votes(300, 2))
        judge = judge_of(votes, labels, blend, 0.3)
        mean, bound = judge.expected_drop(votes[:, 0]), judge.expected_drop_bound(votes[:, 0])
        # Classes here have the same number of images, so it is the plain mean and its standard error.
        lost = judge.lost(votes[:, 0])
        assert mean == pytest.approx(100 * lost.mean())
        assert bound == pytest.approx(mean + 128.16 * lost.std() / len(labels) ** 0.5)
        gaps.append(bound - mean)
    assert gaps[1] == pytest.approx(gaps[0] / 2)


def test_the_file_describes_its_cascade_and_what_it_costs(cascade_file: tuple[Path, str]) -> None:
    path, printed = cascade_file
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert {value.name: value.type for value in session.get_outputs()}["learners_used"] == "tensor(int64)"
    artifact = Artifact.from_properties(session.get_modelmeta().custom_metadata_map, path)
    assert artifact.cascade is not None
    assert sorted(artifact.cascade.order) == list(range(len(SMALL_LEARNERS)))
    assert len(artifact.cascade.thresholds) == len(SMALL_LEARNERS) - 1
    evidence = artifact.evidence
    assert evidence is not None
    assert set(evidence["cost"]) == {"1", "8"}
    assert 1 <= evidence["learners_used"] <= len(SMALL_LEARNERS)
    assert evidence["plain"]["top1"] - evidence["this"]["top1"] <= 0.4
    for card, text in zip(artifact.learners, evidence["forms"].values(), strict=True):
        assert text == f"fp32 at {card.resolution} pixels"
    assert "learners per image" in printed


def test_the_server_takes_it_and_lists_the_votes_that_were_cast(cascade_file: tuple[Path, str]) -> None:
    model = Model.load(cascade_file[0], max_batch=4)
    answer = model.classify(pixels(12))
    cast, results = answer.votes.any(axis=2), split(answer)
    for image in range(12):
        result = results[image]
        listed = image_result(model, result, Options()).learners or []
        names = [card.name for card, voted in zip(model.artifact.learners, cast[image], strict=True) if voted]
        assert [vote.learner for vote in listed] == names


def test_the_gate_refuses_what_loses_too_much(small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reckless = Cascade((1, 0), (0.0,))
    monkeypatch.setattr(search, "choose_cascade", lambda *_: reckless)
    with pytest.raises(UserError, match=r"release gate refuses this graph: .* points \(limit 0\).*no file was written"):
        export(small_run, tmp_path / "models" / "a.onnx", Wanted(cascade=True, max_accuracy_drop=0.0))
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"), [({"val": []}, "no images that validate"), ({"datastore_sha256": {}}, "has changed since")]
)
def test_without_validation_images_there_is_no_cascade(
    small_run: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    run = Path(shutil.copytree(small_run, tmp_path / "run"))
    split = json.loads((run / SPLIT_FILE).read_text())
    (run / SPLIT_FILE).write_text(json.dumps({**split, **change}))
    with pytest.raises(UserError, match=message):
        export(run, tmp_path / "a.onnx", Wanted(cascade=True))


def test_a_limit_that_is_no_number_of_points() -> None:
    with pytest.raises(UserError, match="--max_accuracy_drop is -1"):
        Wanted(cascade=True, max_accuracy_drop=-1)
