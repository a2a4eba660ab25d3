"""How fast this machine trains: a few real steps of each architecture, on noise."""

import time
from collections.abc import Iterable

import torch
import torch.nn.functional as F

from tailstack.network import Learner
from tailstack.progress import track
from training.budget import Speed
from training.depthwise import speed_up_depthwise
from training.settings import FitSettings

_STEPS = 4
"""Steps that are timed, after one that warms up."""
_BATCH = 32
"""Images of a step on a CPU, at most: its speed doesn't depend on more."""
_LOADING = 1.05
"""Time of `fit` for an image, as a multiple of the bare step's: 0.95 to 1.11 by `benchmarks/training.py`."""


def measure(
    architectures: Iterable[str], num_classes: int, resolutions: tuple[int, int], settings: FitSettings
) -> dict[str, Speed]:
    """Time training steps of each architecture at two resolutions, in pixels.

    Args:
        architectures: timm's names.
        num_classes: of the data.
        resolutions: a small and a larger one.
        settings: batch size, precision.

    Raises:
        UserError: timm has no such architecture.
    """
    names = sorted(set(architectures))
    pairs = [(name, resolution) for name in names for resolution in resolutions]
    timed = {
        pair: _seconds_per_image(*pair, num_classes, settings)
        for pair in track(pairs, "Timing this machine", len(pairs))
    }
    return {name: Speed(resolutions, (timed[name, resolutions[0]], timed[name, resolutions[1]])) for name in names}


def _seconds_per_image(architecture: str, resolution: int, num_classes: int, settings: FitSettings) -> float:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    learner = Learner(architecture, num_classes, resolution).train()
    speed_up_depthwise(learner)
    learner = learner.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch types device and memory_format apart
    optimizer = torch.optim.AdamW(learner.parameters(), lr=settings.lr, fused=True)
    batch = settings.batch_size if device.type == "cuda" else min(settings.batch_size, _BATCH)
    shape = (batch, resolution, resolution, 3)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    labels = torch.randint(0, num_classes, shape[:1], device=device)
    seconds = []
    for _ in range(_STEPS + 1):
        start = time.monotonic()
        with torch.autocast(device.type, _half(settings.precision), enabled=settings.precision != "32-true"):
            loss = F.cross_entropy(learner(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # waits for a GPU to be done
        seconds.append(time.monotonic() - start)
    # The fastest: a moment in which the machine did something else says nothing about the hours to come.
    return _LOADING * min(seconds[1:]) / batch


def _half(precision: str) -> torch.dtype:
    return torch.float16 if precision.startswith("16") else torch.bfloat16
