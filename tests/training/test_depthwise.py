"""The faster gradient of depthwise convolutions on small maps: it is torch's own, and changes nothing else."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tailstack.network import Learner
from training.depthwise import SmallMapConv2d, speed_up_depthwise


def gradients(network: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """Return the output of `network` and its gradients of a loss that tells positions apart."""
    images = images.clone().requires_grad_()
    output = network(images)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    wanted = [parameter for parameter in (images, *network.parameters()) if parameter.requires_grad]
    return [output, *torch.autograd.grad((output * weights).sum(), wanted)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(
    ("kernel", "padding", "size"),
    [
        (5, 2, (1, 1)),
        (5, 2, (2, 3)),
        (5, 2, (4, 7)),
        (5, 2, (9, 8)),
        (7, 3, (6, 6)),
        ((5, 7), (2, 3), (3, 4)),
        (5, 1, (4, 4)),
    ],
)
def test_it_is_torchs_gradient(
    kernel: int | tuple[int, int],
    padding: int | tuple[int, int],
    size: tuple[int, int],
    memory_format: torch.memory_format,
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(6, 6, kernel, padding=padding, groups=6, bias=True).to(dtype)
    fast = nn.Sequential(copy.deepcopy(plain))
    speed_up_depthwise(fast)
    assert isinstance(fast[0], SmallMapConv2d)
    images = torch.randn(3, 6, *size, dtype=dtype).to(memory_format=memory_format)
    for ours, theirs in zip(gradients(fast, images), gradients(plain, images), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_what_does_not_learn_gets_no_gradient() -> None:
    fast = nn.Sequential(nn.Conv2d(4, 4, 5, padding=2, groups=4, bias=False)).requires_grad_(False)
    speed_up_depthwise(fast)
    images = torch.randn(2, 4, 3, 3, requires_grad=True)
    fast(images).sum().backward()
    assert fast[0].weight.grad is None
    assert images.grad is not None


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 4, 3, padding=1, groups=4),
        nn.Conv2d(4, 4, 5, padding=2),
        nn.Conv2d(4, 8, 5, padding=2, groups=4),
        nn.Conv2d(4, 4, 5, padding=2, groups=4, stride=2),
        nn.Conv2d(4, 4, 5, padding=4, groups=4, dilation=2),
        nn.Conv2d(4, 4, 5, padding="same", groups=4),
        nn.Conv2d(4, 4, 5, padding=2, groups=4, padding_mode="reflect"),
    ],
    ids=str,
)
def test_other_convolutions_stay_torchs(conv: nn.Conv2d) -> None:
    speed_up_depthwise(nn.Sequential(conv))
    assert type(conv) is nn.Conv2d


def test_half_precision_stays_torchs() -> None:
    fast = nn.Sequential(nn.Conv2d(4, 4, 5, padding=2, groups=4))
    plain = copy.deepcopy(fast)
    speed_up_depthwise(fast)
    images = torch.randn(2, 4, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        for ours, theirs in zip(gradients(fast, images), gradients(plain, images), strict=True):
            assert torch.equal(ours, theirs)


def test_a_learner_keeps_its_parameters_and_learns_the_same() -> None:
    torch.manual_seed(0)
    plain = Learner("tf_efficientnet_lite0", 5, 32).eval()
    fast = copy.deepcopy(plain)
    speed_up_depthwise(fast)
    assert sum(isinstance(module, SmallMapConv2d) for module in fast.modules()) > 5
    assert list(fast.state_dict()) == list(plain.state_dict())
    images = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    labels = torch.arange(4)
    for learner in (plain, fast):
        F.cross_entropy(learner(images), labels).backward()
    for (name, ours), theirs in zip(fast.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5, msg=name)
