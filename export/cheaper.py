"""A graph that costs less than the plain ensemble and answers nearly the same."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import torch
from torch.utils.flop_counter import FlopCounterMode

from export import MAX_ACCURACY_DROP
from export.cascade import Blend, Cascade
from export.fusion import fuse
from export.gate import Judge, predictor, relative_cost
from export.graph import build_learner_graph
from export.thresholds import choose_cascade
from export.validation import count_batches, learner_votes, pixel_batches, run_splits, spread
from tailstack.artifact import INPUT, LEARNERS_USED, PROBABILITIES, CascadeCard
from tailstack.datastore import Datastore, Split
from tailstack.errors import UserError
from tailstack.images import Size
from tailstack.network import Ensemble, Learner
from tailstack.progress import track
from tailstack.run import RunRecord
from tailstack.session import open_session

COST_IMAGES = 64
COST_BATCHES = (1, 8)


@dataclass(frozen=True)
class Wanted:
    """What a cascade may cost."""

    max_accuracy_drop: float = MAX_ACCURACY_DROP
    """Points of accuracy on validation that it may cost."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_accuracy_drop <= 100:
            raise UserError(f"--max_accuracy_drop is {self.max_accuracy_drop:g}, and has to be points from 0 to 100")


@dataclass(frozen=True)
class CheaperGraph:
    """A graph, what it has to answer, and what it is judged by."""

    model: onnx.ModelProto
    ensemble: Ensemble
    blend: Blend
    cascade: Cascade
    plain: onnx.ModelProto
    """The plain ensemble in fp32."""
    judge: Judge
    validation: Split
    image_size: Size

    @property
    def card(self) -> CascadeCard:
        """The cascade as the file's metadata has it."""
        return CascadeCard(order=list(self.cascade.order), thresholds=list(self.cascade.thresholds))

    def reference(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return what the file has to answer: torch's votes, and the cascade in numpy."""
        votes = self.ensemble(images)[1].numpy()
        return tuple(torch.from_numpy(output) for output in self.cascade.run(votes, self.blend))

    def evidence(self, path: Path) -> dict[str, Any]:
        """Measure the file `path` of this graph on the images that validate, beside the plain graph.

        Raises:
            UserError: it loses more than it may.
        """
        session = open_session(path, "cpu")
        batches = track(pixel_batches(self.validation, self.image_size), "Release gate", count_batches(self.validation))
        outputs = [session.run([PROBABILITIES, LEARNERS_USED], {INPUT: images}) for images in batches]
        answers, used = (np.concatenate(parts) for parts in zip(*outputs, strict=True))
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
            "learners_used": float(used.mean()),
            "cost": self._cost(path),
        }

    def _cost(self, path: Path) -> dict[str, dict[str, float]]:
        """Return `relative_cost` on one thread by batch size."""
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
    _, validation = run_splits(run, store)
    blend = Blend(tuple(record.weights), record.temperature)
    size, classes = record.image_size, len(record.classes)
    networks = [cast(Learner, module) for module in ensemble.learners]
    learners = [build_learner_graph(network, size) for network in networks]
    votes = learner_votes(learners, validation, size, "Votes on validation")
    counts = np.array(record.class_counts)
    judge = Judge(blend.plain(votes), validation.labels, record.classes, counts, wanted.max_accuracy_drop)
    cascade = choose_cascade(votes, blend, [operations(network, size) for network in networks], judge)
    return CheaperGraph(
        model=fuse(learners, blend, cascade, size, classes),
        ensemble=ensemble,
        blend=blend,
        cascade=cascade,
        plain=fuse(learners, blend, None, size, classes),
        judge=judge,
        validation=validation,
        image_size=size,
    )


def operations(learner: Learner, image_size: Size) -> float:
    """Return the floating-point operations of a learner's products for one image."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        learner(torch.zeros((1, *image_size, 3), dtype=torch.uint8))
    return float(counter.get_total_flops())
