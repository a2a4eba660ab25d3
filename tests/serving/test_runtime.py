"""What only GPUs need, as far as it can be tried on a CPU: bound inputs and outputs, and batches of few sizes."""

from pathlib import Path

import numpy as np
import pytest

from serving.runtime import CPU, Model, padded_size, run_bound, warm_up_sizes
from tailstack.session import provider_in_use


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_bound_batches_give_the_same_answers(tiny_model: Path, batch: int) -> None:
    model = Model.load(tiny_model, "cpu")
    images = np.random.default_rng(0).integers(0, 256, (batch, 32, 32, 3), dtype=np.uint8)
    bound, plain = run_bound(model.session, images), model.classify(images)
    np.testing.assert_allclose(bound.probabilities, plain.probabilities, atol=1e-5)
    np.testing.assert_allclose(bound.votes, plain.votes, atol=1e-5)
    assert provider_in_use(model.session) == CPU


@pytest.mark.parametrize("max_batch", [1, 2, 12, 16])
def test_a_gpu_has_seen_every_size_before_the_first_request(max_batch: int) -> None:
    sizes = warm_up_sizes("CUDAExecutionProvider", max_batch)
    assert set(sizes) == {padded_size(batch) for batch in range(1, max_batch + 1)}
    assert len(set(sizes)) == len(sizes)
    assert sizes[:2] == sorted({1, padded_size(max_batch)})
    assert warm_up_sizes(CPU, max_batch) == sorted({1, max_batch})
