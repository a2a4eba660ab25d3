"""What changes while a learner trains: its resolution grows, and its first layers begin to learn later."""

import pytorch_lightning as L
from timm.models import group_modules
from torch import nn

from tailstack.network import Learner

_STEP = 16
"""Resolutions on the way are multiples of it, in pixels."""
_GROWN = 2 / 3
"""Share of the epochs after which the resolution is full."""


def resolution_at(epoch: int, epochs: int, first: int, last: int) -> int:
    """Return the resolution of an epoch, counted from 0: from `first` up to `last`, which the last third has.

    Growing resolution: Tan & Le, "EfficientNetV2: Smaller Models and Faster Training", ICML 2021.
    """
    share = epoch / (_GROWN * epochs)
    if not first or first >= last or share >= 1:
        return last
    if epoch == 0:
        return first
    return min(last, max(first, round((first + share * (last - first)) / _STEP) * _STEP))


def first_layers(backbone: nn.Module) -> list[nn.Module]:
    """Return the first third of a timm network's layers: of an EfficientNet, its stem and its first two stages."""
    matcher = getattr(backbone, "group_matcher", None)
    if matcher is None:
        return []
    groups = group_modules(backbone, matcher(coarse=True))
    return [backbone.get_submodule(name) for layer in sorted(groups)[: len(groups) // 3] for name in groups[layer]]


class Growth(L.Callback):
    """Sets what an epoch trains, and at which resolution; validation is at full resolution always."""

    def __init__(self, learner: Learner, grow_from: int, freeze: float) -> None:
        self._learner = learner
        self._full = learner.resolution
        self._grow_from = grow_from
        self._freeze = freeze
        self._first = first_layers(learner.backbone) if freeze else []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Set the epoch's resolution, and whether the first layers learn."""
        epoch, epochs = trainer.current_epoch, trainer.max_epochs or 0
        self._learner.resolution = resolution_at(epoch, epochs, self._grow_from, self._full)
        for layer in self._first:
            layer.requires_grad_(epoch >= int(self._freeze * epochs))

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at full resolution."""
        self._learner.resolution = self._full
