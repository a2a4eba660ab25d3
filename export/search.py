"""The cheapest ensemble within the limits: which form each learner takes, and where a cascade stops.

Every combination of forms can't be tried. The search begins with every learner as it was trained, and changes one
learner's form at a time, the change that makes an image cheapest, with thresholds chosen anew for each, until no change
does. So int8, fewer pixels and the cascade share what may be lost however it saves most.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from export.cascade import Cascade, partial_means
from export.forms import Form
from export.gate import Judge
from export.thresholds import choose_cascade
from tailstack.blend import Blend
from tailstack.errors import UserError


@dataclass(frozen=True)
class Choice:
    """An ensemble without objections."""

    forms: tuple[Form, ...]
    cascade: Cascade | None
    cost: float
    """Of an image on average, in the unit of `Form.cost`."""


def choose(options: Sequence[Sequence[Form]], blend: Blend, judge: Judge, *, cascade: bool) -> Choice:
    """Choose each learner's form, and the cascade if there is to be one.

    Args:
        options: each learner's forms; the first is the one that the plain ensemble has.
        blend: how votes become one answer.
        judge: what may be lost, on the images that the forms' votes are of.
        cascade: whether later learners see only what earlier ones are unsure of.

    Raises:
        UserError: the first forms are past a limit already, as they can be in fp16.
    """
    search = _Search(blend, judge, cascade)
    best = search.solved(tuple(forms[0] for forms in options))
    if best is None:
        raise UserError("the release gate refuses these learners even where each sees every image")
    while True:
        trials = [
            search.solved((*best.forms[:place], form, *best.forms[place + 1 :]))
            for place, forms in enumerate(options)
            for form in forms
            if form is not best.forms[place]
        ]
        cheaper = [trial for trial in trials if trial is not None and trial.cost < best.cost]
        if not cheaper:
            return best
        best = min(cheaper, key=lambda trial: trial.cost)


@dataclass(frozen=True)
class _Search:
    blend: Blend
    judge: Judge
    cascade: bool

    def solved(self, forms: tuple[Form, ...]) -> Choice | None:
        """Return the cheapest ensemble of these forms, or None if even all of them together are past a limit."""
        votes = np.stack([form.votes for form in forms], axis=1)
        costs = [form.cost for form in forms]
        if not self.cascade:
            return None if self.judge.objections(self.blend.apply(votes)) else Choice(forms, None, sum(costs))
        cascade = choose_cascade(votes, self.blend, costs, self.judge)
        if cascade is None:
            return None
        used = cascade.used(partial_means(votes, self.blend.weights, cascade.order))
        return Choice(forms, cascade, cascade.cost(used, costs))
