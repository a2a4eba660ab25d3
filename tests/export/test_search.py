"""The search over forms: within the limits, no single change cheaper, and fewer pixels among the forms."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from export.forms import Form, FormMaker, operations
from export.gate import Judge
from export.search import Choice, choose
from export.thresholds import choose_cascade
from tailstack import datastore as datastores
from tailstack.blend import Blend
from tailstack.errors import UserError
from tailstack.network import Learner
from tests.conftest import CLASSES, SIZE, TRAIN_COUNTS

Array = npt.NDArray[np.float32]
IMAGES = 600
LABELS = np.arange(IMAGES) % len(CLASSES)


def softmax(logits: npt.NDArray[np.float64]) -> Array:
    exponent = np.exp(logits)
    return (exponent / exponent.sum(axis=1, keepdims=True)).astype(np.float32)


def form(logits: npt.NDArray[np.float64], cost: float) -> Form:
    """A form of which only votes and cost are known."""
    nothing: Any = SimpleNamespace()
    return Form(nothing, nothing, softmax(logits), cost)


def options_of(learners: int, noises: tuple[float, ...], seed: int = 0) -> list[list[Form]]:
    """Learners' forms: the noisier the cheaper, the first without noise."""
    rng = np.random.default_rng(seed)
    found = []
    for learner in range(learners):
        logits = rng.normal(0, 1.2, (IMAGES, len(CLASSES)))
        logits[np.arange(IMAGES), LABELS] += 2.5 + learner / 2
        cost = 2.0 + learner
        noisy = [
            form(logits + rng.normal(0, noise, logits.shape), cost * rng.uniform(0.4, 0.6) / (1 + noise))
            for noise in noises
        ]
        found.append([form(logits, cost), *noisy])
    return found


def judge_of(options: list[list[Form]], blend: Blend, max_drop: float) -> Judge:
    votes = np.stack([forms[0].votes for forms in options], axis=1)
    return Judge(blend.apply(votes), votes, LABELS, CLASSES, np.array(TRAIN_COUNTS), max_drop)


def answers_of(choice: Choice, blend: Blend) -> Array:
    votes = np.stack([form.votes for form in choice.forms], axis=1)
    return choice.cascade.run(votes, blend)[0] if choice.cascade else blend.apply(votes)


@pytest.mark.parametrize("learners", [1, 2, 3])
@pytest.mark.parametrize("max_drop", [0.0, 0.5, 3.0])
def test_a_cascade_is_within_the_limits_and_no_single_change_makes_it_cheaper(learners: int, max_drop: float) -> None:
    options = options_of(learners, (0.05, 0.6))
    blend = Blend((1 / learners,) * learners, 1.0)
    judge = judge_of(options, blend, max_drop)
    choice = choose(options, blend, judge, cascade=True)
    assert judge.objections(answers_of(choice, blend), stops_judged=True) == []
    for place, forms in enumerate(options):
        for other in forms:
            trial = (*choice.forms[:place], other, *choice.forms[place + 1 :])
            votes = np.stack([form.votes for form in trial], axis=1)
            cascade = choose_cascade(votes, blend, [form.cost for form in trial], judge)
            if cascade is None:
                continue
            used = cascade.run(votes, blend)[2]
            cost = np.cumsum([trial[learner].cost for learner in cascade.order])[used - 1].mean()
            assert cost >= choice.cost - 1e-9
    if max_drop == 0:
        assert np.array_equal(answers_of(choice, blend).argmax(axis=1), judge.plain.argmax(axis=1))
    else:
        assert choice.cost < sum(forms[0].cost for forms in options)


def test_without_a_cascade_forms_share_what_may_be_lost() -> None:
    blend = Blend((0.5, 0.5), 1.0)
    options = options_of(2, (0.3,), seed=1)
    costs = {}
    for max_drop in (0.0, 0.1, 50.0):
        judge = judge_of(options, blend, max_drop)
        choice = choose(options, blend, judge, cascade=False)
        assert choice.cascade is None
        assert judge.objections(answers_of(choice, blend)) == []
        costs[max_drop] = choice.cost
        assert choice.cost == pytest.approx(sum(form.cost for form in choice.forms))
    assert costs[0.0] == sum(forms[0].cost for forms in options)
    assert costs[50.0] == pytest.approx(sum(forms[1].cost for forms in options))
    assert costs[50.0] < costs[0.1] <= costs[0.0]


def test_what_starts_outside_the_limits_is_refused() -> None:
    blend = Blend((0.5, 0.5), 1.0)
    judge = judge_of(options_of(2, ()), blend, 0.1)
    with pytest.raises(UserError, match="even where each sees every image"):
        choose(options_of(2, (), seed=5), blend, judge, cascade=True)


def test_a_form_at_fewer_pixels_answers_as_torch_does_and_costs_less(tiny_datastore: Path) -> None:
    test = datastores.load(tiny_datastore).test
    maker = FormMaker(test, (SIZE, SIZE))
    torch.manual_seed(0)
    network = Learner("test_efficientnet", len(CLASSES), 64).eval()
    exact = maker.in_float(network)
    smaller = maker.smaller(exact)
    assert smaller is not None
    assert (network.resolution, smaller.network.resolution) == (64, 48)
    assert smaller.cost == operations(smaller.network, (SIZE, SIZE)) < 0.7 * exact.cost
    pixels = np.stack([test.decode(index, (SIZE, SIZE)) for index in range(len(test))])
    with torch.inference_mode():
        expected = smaller.network(torch.from_numpy(pixels)).softmax(dim=1).numpy()
    np.testing.assert_allclose(smaller.votes, expected, atol=1e-5)
    assert np.abs(smaller.votes - exact.votes).max() > 1e-4


# A transformer is built for one resolution; the sums of this network's branches need multiples of 32.
@pytest.mark.parametrize(("architecture", "resolution"), [("test_vit", 32), ("dla46_c", 96)])
def test_some_networks_have_no_form_at_fewer_pixels(tiny_datastore: Path, architecture: str, resolution: int) -> None:
    maker = FormMaker(datastores.load(tiny_datastore).test, (SIZE, SIZE))
    network = Learner(architecture, len(CLASSES), resolution).eval()
    nothing: Any = SimpleNamespace()
    exact = Form(nothing, network, np.zeros((1, 1), np.float32), 1.0)
    assert maker.smaller(exact) is None
