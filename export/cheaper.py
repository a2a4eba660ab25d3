"""A graph that costs less than the plain ensemble and answers nearly the same."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import torch
from torch.utils.flop_counter import FlopCounterMode

from export import MAX_ACCURACY_DROP
from export.cascade import Blend, Cascade, Votes
from export.fusion import fuse
from export.gate import Judge, predictor, relative_cost
from export.graph import build_learner_graph
from export.half import halve
from export.quantize import quantize
from export.thresholds import choose_cascade
from export.validation import (
    Voters,
    calibration_batches,
    learner_votes,
    pixel_batches,
    run_splits,
    spread,
)
from tailstack.artifact import LEARNER_PROBABILITIES, LEARNERS_USED, PROBABILITIES, CascadeCard, Precision
from tailstack.datastore import Datastore, Split
from tailstack.errors import UserError
from tailstack.images import Pixels, Size
from tailstack.metrics import Probabilities
from tailstack.network import Ensemble, Learner
from tailstack.run import RunRecord
from tailstack.session import open_session

COST_IMAGES = 64
COST_BATCHES = (1, 8)
HALF_TOLERANCE = 0.1
"""Largest difference of a learner's probability in fp16 from that in fp32, on any image that validates: several times
what rounding makes of an image that is torn between two classes, and far below what an overflow makes."""


@dataclass(frozen=True)
class Wanted:
    """How a graph is to be cheaper, and what that may cost."""

    cascade: bool = False
    """Later learners see only the images that the ones before are unsure of."""
    precision: Precision = "fp32"
    """Of weights and activations."""
    max_accuracy_drop: float = MAX_ACCURACY_DROP
    """Points of accuracy on validation that it may cost."""

    @property
    def plain(self) -> bool:
        """Whether it isn't to be cheaper."""
        return not self.cascade and self.precision == "fp32"

    def __post_init__(self) -> None:
        if not 0 <= self.max_accuracy_drop <= 100:
            raise UserError(f"--max_accuracy_drop is {self.max_accuracy_drop:g}, and has to be points from 0 to 100")


@dataclass(frozen=True)
class CheaperGraph:
    """A graph, what it has to answer, and what it is judged by."""

    model: onnx.ModelProto
    votes: Callable[[Pixels], Votes]
    """Every learner's probabilities, by other means than this graph."""
    blend: Blend
    cascade: Cascade | None
    precision: Precision
    in_float: dict[str, list[str]]
    """Blocks that int8 left in float, by learner."""
    plain: onnx.ModelProto
    """The plain ensemble in fp32."""
    judge: Judge
    validation: Split
    image_size: Size

    @property
    def reference_name(self) -> str:
        """Whose votes `reference` takes: torch has none in int8, and rounds in other places in fp16."""
        return "torch" if self.precision == "fp32" else "each learner alone"

    @property
    def outputs(self) -> list[str]:
        """The graph's outputs."""
        return [PROBABILITIES, LEARNER_PROBABILITIES, *([LEARNERS_USED] if self.cascade else [])]

    def metadata(self, path: Path, answers: Probabilities, votes: Votes) -> dict[str, Any]:
        """Return the fields of `tailstack.artifact.Artifact` that tell the file of this graph from a plain one.

        Args:
            path: the file.
            answers, votes: what it answers on the images that validate.

        Raises:
            UserError: it loses more accuracy than it may.
        """
        cascade = self.cascade
        card = CascadeCard(order=list(cascade.order), thresholds=list(cascade.thresholds)) if cascade else None
        return {"precision": self.precision, "cascade": card, "evidence": self._evidence(path, answers, votes)}

    def reference(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return what the file has to answer: the learners' votes, and the rest in numpy."""
        votes = self.votes(images.numpy())
        outputs = self.cascade.run(votes, self.blend) if self.cascade else (self.blend.plain(votes), votes)
        return tuple(torch.from_numpy(output) for output in outputs)

    def _evidence(self, path: Path, answers: Probabilities, votes: Votes) -> dict[str, Any]:
        """Judge the file beside the plain graph."""
        objections = self.judge.objections(answers)
        if objections:
            raise UserError(f"the release gate refuses this graph: {'; '.join(objections)}; no file was written")
        return {
            "split": "validation",
            "images": len(self.validation),
            "max_accuracy_drop": self.judge.max_drop,
            "plain": self.judge.figures(self.judge.plain),
            "this": self.judge.figures(answers),
            "expected_drop": self.judge.expected_drop(answers),
            "expected_drop_bound": self.judge.expected_drop_bound(answers),
            "learners_used": float(votes.any(axis=2).sum(axis=1).mean()),
            "in_float": self.in_float,
            "cost": self._cost(path),
        }

    def _cost(self, path: Path) -> dict[str, dict[str, float]]:
        """Return `relative_cost` on one thread by batch size; empty for fp16, which is slower on a CPU than fp32."""
        if self.precision == "fp16":
            return {}
        sample = spread(self.validation, COST_IMAGES)
        images = np.concatenate(list(pixel_batches(sample, self.image_size)))
        content = self.plain.SerializeToString()
        plain = predictor(open_session(Path("plain"), "cpu", 1, content=content))
        made = predictor(open_session(path, "cpu", 1))
        return {str(batch): relative_cost(plain, made, images, batch) for batch in COST_BATCHES}


def build_cheaper(run: Path, record: RunRecord, store: Datastore, ensemble: Ensemble, wanted: Wanted) -> CheaperGraph:
    """Build the graph that is wanted, deciding by the images that validate.

    Raises:
        UserError: nothing validates, torch can't export an architecture, or nothing is within the limits.
    """
    train, validation = run_splits(run, store)
    blend = Blend(tuple(record.weights), record.temperature)
    size, classes = record.image_size, len(record.classes)
    networks = [cast(Learner, module) for module in ensemble.learners]
    exact = learners = [build_learner_graph(network, size) for network in networks]
    votes = learner_votes(learners, validation, size, "Votes on validation")
    counts = np.array(record.class_counts)
    judge = Judge(blend.plain(votes), validation.labels, record.classes, counts, wanted.max_accuracy_drop)
    kept: list[list[str]] = [[] for _ in learners]
    if wanted.precision == "fp16":
        learners, votes = _halved(exact, votes, validation, size)
    elif wanted.precision == "int8":
        # The cascade needs room of its own.
        strict = replace(judge, max_drop=judge.max_drop / 2) if wanted.cascade else judge
        quantized = quantize(exact, calibration_batches(train, size), _objections(strict, blend, validation, size))
        learners, kept = quantized.learners, quantized.kept
        votes = learner_votes(learners, validation, size, "Votes in int8")
    cascade = None
    if wanted.cascade:
        cascade = choose_cascade(votes, blend, [operations(network, size) for network in networks], judge)
    return CheaperGraph(
        model=fuse(learners, blend, cascade, size, classes),
        votes=Voters(learners).vote if learners is not exact else partial(_torch_votes, ensemble),
        blend=blend,
        cascade=cascade,
        precision=wanted.precision,
        in_float={learner.name: names for learner, names in zip(record.learners, kept, strict=True) if names},
        plain=fuse(exact, blend, None, size, classes),
        judge=judge,
        validation=validation,
        image_size=size,
    )


def _halved(
    exact: list[onnx.ModelProto], votes: Votes, validation: Split, size: Size
) -> tuple[list[onnx.ModelProto], Votes]:
    """Return learners in fp16 and their votes on validation, none of which is far from the learner's own in fp32.

    Raises:
        UserError: one is, as where activations are too large for fp16.
    """
    learners = [halve(model) for model in exact]
    made = learner_votes(learners, validation, size, "Votes in fp16")
    worst = float(np.abs(made - votes).max())
    if not worst <= HALF_TOLERANCE:  # also refuses NaN
        raise UserError(
            f"in fp16 a learner's vote changes by {worst:.1e} (limit {HALF_TOLERANCE:g}): export it in fp32"
        )
    return learners, made


def operations(learner: Learner, image_size: Size) -> float:
    """Return the floating-point operations of a learner's products for one image."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        learner(torch.zeros((1, *image_size, 3), dtype=torch.uint8))
    return float(counter.get_total_flops())


def _objections(
    judge: Judge, blend: Blend, validation: Split, size: Size
) -> Callable[[list[onnx.ModelProto]], list[str]]:
    """Return the function that says what speaks against all of some learners together."""
    return lambda learners: judge.objections(blend.plain(learner_votes(learners, validation, size, "Votes in int8")))


def _torch_votes(ensemble: Ensemble, images: Pixels) -> Votes:
    with torch.inference_mode():
        votes: Votes = ensemble(torch.from_numpy(images))[1].numpy()
    return votes
