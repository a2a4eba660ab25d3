"""A graph that costs less than the plain ensemble and answers nearly the same."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from export import MAX_ACCURACY_DROP
from export.cascade import Cascade, Votes, partial_means, shares_seen
from export.forms import COST_BATCHES, Form, FormMaker
from export.fusion import fuse
from export.gate import Judge, predictor, relative_cost
from export.risk import StopRisk
from export.run_forms import RunForms
from export.search import Choice, choose
from export.validation import Voters
from tailstack.artifact import LEARNER_PROBABILITIES, LEARNERS_USED, PROBABILITIES, CascadeCard, Precision
from tailstack.blend import Blend
from tailstack.errors import UserError
from tailstack.metrics import Probabilities
from tailstack.run import RunRecord
from tailstack.session import open_session


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

    record: RunRecord
    """The run's, with the resolutions that the learners have in this graph."""
    forms: tuple[Form, ...]
    """Of the learners."""
    blend: Blend
    cascade: Cascade | None
    plain: onnx.ModelProto
    """The plain ensemble in fp32."""
    judge: Judge
    maker: FormMaker
    without_int8: float | None
    """Where int8 is in it: how much longer the cheapest such graph without int8 takes, as a multiple of this one."""

    @functools.cached_property
    def model(self) -> onnx.ModelProto:
        """The graph, without metadata."""
        return _fused(self.forms, self.blend, self.cascade, self.record)

    @property
    def precision(self) -> Precision:
        """That of the graph: of any learner that isn't in fp32."""
        return next((form.precision for form in self.forms if form.precision != "fp32"), "fp32")

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
        """Return what the file has to answer: the learners' votes by other means, and the rest in numpy."""
        votes = self._votes(images)
        outputs = self.cascade.run(votes, self.blend) if self.cascade else (self.blend.apply(votes), votes)
        return tuple(torch.from_numpy(output) for output in outputs)

    def _votes(self, images: torch.Tensor) -> Votes:
        if self.precision != "fp32":
            return Voters([form.model for form in self.forms]).vote(images.numpy())
        with torch.inference_mode():
            logits = torch.stack([form.network(images) for form in self.forms], dim=1)
            votes: Votes = logits.softmax(dim=2).numpy()
        return votes

    def _evidence(self, path: Path, answers: Probabilities, votes: Votes) -> dict[str, Any]:
        """Judge the file beside the plain graph."""
        objections = self.judge.objections(answers, stops_judged=self.cascade is not None)
        if objections:
            raise UserError(f"the release gate refuses this graph: {'; '.join(objections)}; no file was written")
        named = list(zip(self.record.learners, self.forms, strict=True))
        expected, bound = self._expected(answers)
        return {
            "split": "validation",
            "images": len(self.judge.labels),
            "max_accuracy_drop": self.judge.max_drop,
            "plain": self.judge.figures(self.judge.plain),
            "this": self.judge.figures(answers),
            "expected_drop": expected,
            "expected_drop_bound": bound,
            "learners_used": float(votes.any(axis=2).sum(axis=1).mean()),
            "forms": {learner.name: form.text for learner, form in named},
            "in_float": {learner.name: list(form.in_float) for learner, form in named if form.in_float},
            "without_int8": self.without_int8,
            "cost": self._cost(path),
        }

    def _expected(self, answers: Probabilities) -> tuple[float, float]:
        """Return the points that are expected to be lost, and those that are at most, with 90% confidence."""
        if self.cascade is None:
            return self.judge.expected_drop(answers), self.judge.expected_drop_bound(answers)
        votes = np.stack([form.votes for form in self.forms], axis=1)
        means = partial_means(votes, self.blend.weights, self.cascade.order)
        shares = shares_seen(self.blend.weights, self.cascade.order)
        risk, used = StopRisk.fit(means, shares, self.judge), self.cascade.used(means)
        return risk.expected(used), risk.bound(used)

    def _cost(self, path: Path) -> dict[str, dict[str, float]]:
        """Return `relative_cost` on one thread by batch size; empty for fp16, which is slower on a CPU than fp32."""
        if self.precision == "fp16":
            return {}
        images = self.maker.sample()
        plain = predictor(open_session(Path("plain"), "cpu", 1, content=self.plain.SerializeToString()))
        made = predictor(open_session(path, "cpu", 1))
        return {str(batch): relative_cost(plain, made, images, batch) for batch in COST_BATCHES}


def build_cheaper(made: RunForms, wanted: Wanted) -> CheaperGraph:
    """Build the graph that is wanted, deciding by the images that validate.

    Args:
        made: the run, and its learners' forms.
        wanted: how the graph is to be cheaper.

    Raises:
        UserError: nothing validates, torch can't export an architecture, or nothing is within the limits.
    """
    record, maker, blend = made.record, made.maker, made.blend
    judge = made.judge(wanted.max_accuracy_drop)
    options = [[form] for form in made.exact]
    if wanted.cascade:
        _add_fewer_pixels(options, made, judge)
    in_float = [list(forms) for forms in options]
    if wanted.precision == "fp16":
        options = [[maker.in_half(form) for form in forms] for forms in options]
    elif wanted.precision == "int8":
        options = [[*forms, *(whole for form in forms for whole in made.in_integers(form))] for forms in options]
    print("Searching for the cheapest graph within the limits …", flush=True)
    choice = choose(options, blend, judge, cascade=wanted.cascade)
    without = None
    if wanted.precision == "int8":
        other = choose(in_float, blend, judge, cascade=wanted.cascade)
        choice, without = _faster(choice, other, blend, maker, record)
    for learner, form in zip(record.learners, choice.forms, strict=True):
        print(f"{learner.name}: {form.text}", flush=True)
    return CheaperGraph(
        record=_with_resolutions(record, choice.forms),
        forms=choice.forms,
        blend=blend,
        cascade=choice.cascade,
        plain=_fused(made.exact, blend, None, record),
        judge=judge,
        maker=maker,
        without_int8=without,
    )


def _add_fewer_pixels(options: list[list[Form]], made: RunForms, judge: Judge) -> None:
    """Give the cheapest learner a form at fewer pixels, unless that is past a limit even where all see every image."""
    first = min(range(len(made.exact)), key=lambda place: made.exact[place].cost)
    smaller = made.smaller(made.exact[first])
    if smaller is None:
        return
    forms = [smaller if place == first else form for place, form in enumerate(made.exact)]
    if not judge.objections(made.blend.apply(np.stack([form.votes for form in forms], axis=1)), stops_judged=True):
        options[first].append(smaller)


def _faster(
    choice: Choice, in_float: Choice, blend: Blend, maker: FormMaker, record: RunRecord
) -> tuple[Choice, float | None]:
    """Build and time what was chosen beside the best without int8; return the faster, and the other's relative time."""
    if all(form.precision == "fp32" for form in choice.forms):
        print("Without int8: it is slower here, or loses more than it may, in every learner", flush=True)
        return choice, None
    graphs = [_fused(found.forms, blend, found.cascade, record) for found in (choice, in_float)]
    without = maker.costs(graphs)[1]
    if without <= 1:
        print(f"Without int8: this graph would take {1 / without:.2f} times as long with it", flush=True)
        return in_float, None
    print(f"With int8: the best graph without it takes {without:.2f} times as long", flush=True)
    return choice, without


def _fused(forms: Sequence[Form], blend: Blend, cascade: Cascade | None, record: RunRecord) -> onnx.ModelProto:
    return fuse([form.model for form in forms], blend, cascade, record.image_size, len(record.classes))


def _with_resolutions(record: RunRecord, forms: Sequence[Form]) -> RunRecord:
    learners = [
        learner.model_copy(update={"resolution": form.network.resolution})
        for learner, form in zip(record.learners, forms, strict=True)
    ]
    return record.model_copy(update={"learners": learners})
