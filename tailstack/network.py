"""The torch modules: one learner, and the ensemble that averages them. Not imported by anything that serves."""

import difflib
from pathlib import Path
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tailstack.errors import UserError
from tailstack.run import WEIGHTS_FILE, LearnerRecord, RunRecord, learner_folder

Head = Literal["linear", "cosine"]


class Learner(nn.Module):
    """A backbone with its preprocessing: pixels in, logits out.

    Raises:
        UserError: timm has no such architecture; the message names the nearest.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, architecture: str, num_classes: int, resolution: int, *, head: Head = "linear") -> None:
        super().__init__()
        config = architecture_config(architecture)
        self.resolution = resolution
        self.backbone: Any = build_backbone(architecture, num_classes, resolution)
        if head == "cosine":
            _use_cosine_head(self.backbone, num_classes)
        for name in ("mean", "std"):
            values = torch.tensor(config[name]).view(1, 3, 1, 1) * 255
            self.register_buffer(f"pixel_{name}", values, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map uint8 `[batch, height, width, 3]` RGB to float logits `[batch, classes]`."""
        # The permuted view of a contiguous NHWC batch already is in channels_last order.
        pixels = images.permute(0, 3, 1, 2).float()
        if pixels.shape[-2:] != (self.resolution, self.resolution):
            size = (self.resolution, self.resolution)
            pixels = F.interpolate(pixels, size=size, mode="bilinear", antialias=True, align_corners=False)
        # A whole row of them: ONNX Runtime puts the channels of int8 last, and takes them in threes otherwise.
        mean, std = (value.expand(-1, -1, -1, self.resolution) for value in (self.pixel_mean, self.pixel_std))
        logits: Tensor = self.backbone((pixels - mean) / std)
        return logits.float()


class CosineHead(nn.Module):
    """Classifier whose logits are cosines between features and class weights, times a constant.

    NormFace: Wang et al., 2017; the head that LDAM's margins are meant for.
    """

    scale = 30.0

    def __init__(self, features: int, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_classes, features) / features**0.5)

    def forward(self, features: Tensor) -> Tensor:
        """Map `[batch, features]` to `[batch, classes]`."""
        return self.scale * F.linear(F.normalize(features), F.normalize(self.weight))


class Ensemble(nn.Module):
    """Learners whose softmax outputs are averaged."""

    weights: Tensor

    def __init__(self, learners: list[Learner], weights: list[float], temperature: float) -> None:
        super().__init__()
        self.learners = nn.ModuleList(learners)
        self.temperature = temperature
        self.register_buffer("weights", torch.tensor(weights).view(1, -1, 1), persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map uint8 `[batch, height, width, 3]` RGB to probabilities.

        Returns:
            float32 `[batch, classes]`, the weighted mean, sharpened or flattened by the temperature, and float32
            `[batch, learners, classes]`, each learner's own.
        """
        votes = torch.stack([learner(images) for learner in self.learners], dim=1)
        votes = torch.softmax(votes, dim=2)
        mean = (votes * self.weights).sum(dim=1)
        if self.temperature != 1:
            # Sharper or flatter, and a distribution again. Rows of zeros would have no logarithm.
            mean = torch.softmax(torch.log(mean.clamp_min(torch.finfo(mean.dtype).tiny)) / self.temperature, dim=1)
        return mean, votes


def architecture_config(architecture: str) -> dict[str, Any]:
    """Return timm's configuration of an architecture (mean, std, input size, …).

    Raises:
        UserError: timm has no such architecture; the message names the nearest.
    """
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3, cutoff=0.4)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise UserError(f"there is no architecture {architecture!r} in timm {timm.__version__}{hint}")
    config = timm.get_pretrained_cfg(architecture)
    return config.to_dict() if config is not None else {"mean": (0.5,) * 3, "std": (0.5,) * 3}


def _use_cosine_head(backbone: Any, num_classes: int) -> None:
    linear = backbone.get_classifier()
    backbone.set_submodule(module_name(backbone, linear), CosineHead(linear.in_features, num_classes))


def module_name(network: nn.Module, wanted: nn.Module) -> str:
    """Return the dotted name of a module of `network`."""
    return str(next(name for name, module in network.named_modules() if module is wanted))


def build_backbone(architecture: str, num_classes: int, resolution: int, *, pretrained: bool = False) -> nn.Module:
    """Build timm's network; `pretrained` takes its weights, all but the classifier's, from timm's hub.

    Raises:
        UserError: timm has no such architecture. What the hub's client raises besides is of several libraries.
    """
    # Transformers are built for one resolution; convolutional networks take any.
    fixed = architecture_config(architecture).get("fixed_input_size")
    size: dict[str, Any] = {"img_size": resolution} if fixed else {}
    return timm.create_model(architecture, num_classes=num_classes, pretrained=pretrained, **size)


def load_learner(run: Path, record: LearnerRecord, num_classes: int) -> Learner:
    """Build a trained learner of `run`, in evaluation mode.

    Raises:
        UserError: its weights are missing or don't fit.
    """
    learner = Learner(record.architecture, num_classes, record.resolution, head=record.head)
    path = learner_folder(run, record.name) / WEIGHTS_FILE
    try:
        learner.load_state_dict(load_file(path))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{path} doesn't hold the weights of {record.architecture}: {error}") from error
    return learner.eval()


def load_ensemble(run: Path, record: RunRecord) -> Ensemble:
    """Build the trained ensemble of `run`, in evaluation mode and channels_last order.

    Raises:
        UserError: a learner's weights are missing or don't fit.
    """
    learners = [load_learner(run, learner, len(record.classes)) for learner in record.learners]
    ensemble = Ensemble(learners, record.weights, record.temperature)
    return ensemble.to(memory_format=torch.channels_last).eval()
