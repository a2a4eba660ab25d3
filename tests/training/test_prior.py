"""The class mix that a learner's probabilities stand for: where its own loss is least."""

import numpy as np
import pytest
import torch

from training.losses import make_loss

COUNTS = np.array([60, 25, 10, 5])


@pytest.mark.parametrize(
    ("name", "tau", "factors"),
    [
        ("none", 1.0, None),
        ("ins", 1.0, None),
        ("isns", 1.0, None),
        ("ens", 1.0, None),
        ("logit_adjusted", 1.0, None),
        ("logit_adjusted", 1.5, None),
        ("none", 1.0, np.array([1, 1, 3, 1], np.float32)),
        ("isns", 1.0, np.array([0.5, 1, 1, 2], np.float32)),
    ],
)
def test_probabilities_of_the_least_loss_are_the_prior(name: str, tau: float, factors: np.ndarray | None) -> None:
    """Pictures that tell nothing: all that can be learnt is how frequent a class seems."""
    loss = make_loss(name, COUNTS, factors, beta=0.9, tau=tau, weights_from=0)
    labels = torch.from_numpy(np.repeat(np.arange(4), COUNTS))
    logits = torch.zeros(4, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss(logits.expand(len(labels), -1), labels, epoch=0)
        value.backward()
        return value

    optimizer.step(step)
    np.testing.assert_allclose(loss.prior(COUNTS), torch.softmax(logits, 0).detach(), atol=1e-4)


def test_what_balances_classes_stands_for_all_alike() -> None:
    for name in ("ins", "logit_adjusted"):
        loss = make_loss(name, COUNTS, None, beta=0.9, tau=1.0, weights_from=0)
        np.testing.assert_allclose(loss.prior(COUNTS), 0.25, rtol=1e-6)
