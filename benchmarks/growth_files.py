"""Files to measure that nobody trained: what an image costs doesn't depend on what the weights have learnt."""

from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from onnx import ModelProto

from benchmarks.growth_rows import CLASSES, LEARNERS, PIXELS
from export.fusion import fuse
from export.graph import build_learner_graph
from tailstack.blend import Blend
from tailstack.network import Learner
from tailstack.progress import track


@dataclass(frozen=True)
class Plan:
    """Values of each axis, and the shape of a file on the others: one learner, `classes[1]`, `pixels[1]`."""

    architecture: str = "tf_efficientnet_lite0"
    learners: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8)
    classes: tuple[int, ...] = (10, 100, 1000, 10_000)
    pixels: tuple[int, ...] = (64, 96, 128, 160, 224)


@dataclass(frozen=True)
class Built:
    """A file, and what its input has to be."""

    path: Path
    pixels: int


def build_files(plan: Plan, folder: Path) -> dict[tuple[str, int], Built]:
    """Write a file for each axis and value into `folder`.

    Raises:
        UserError: timm has no such architecture, or torch can't export it.
    """
    classes, pixels = plan.classes[1], plan.pixels[1]
    shapes = {
        **{(CLASSES, value): (value, pixels) for value in plan.classes},
        **{(PIXELS, value): (classes, value) for value in plan.pixels},
    }
    wanted = [(classes, pixels, seed) for seed in range(max(plan.learners))]
    wanted += [(*shape, 0) for shape in dict.fromkeys(shapes.values()) if shape != (classes, pixels)]
    graphs = {
        key: _learner_graph(plan.architecture, *key)
        for key in track(wanted, "Exporting untrained learners", len(wanted))
    }
    files = {}
    for value in plan.learners:
        learners = [graphs[classes, pixels, seed] for seed in range(value)]
        files[LEARNERS, value] = _save(learners, classes, pixels, folder / f"learners-{value}.onnx")
    for (axis, value), shape in shapes.items():
        files[axis, value] = _save([graphs[*shape, 0]], *shape, folder / f"{axis}-{value}.onnx")
    return files


def _learner_graph(architecture: str, classes: int, pixels: int, seed: int) -> ModelProto:
    # Each learner has weights of its own: a runtime may keep equal ones once.
    torch.manual_seed(seed)
    return build_learner_graph(Learner(architecture, classes, pixels).eval(), (pixels, pixels))


def _save(learners: list[ModelProto], classes: int, pixels: int, path: Path) -> Built:
    blend = Blend((1 / len(learners),) * len(learners), 1.0)
    onnx.save(fuse(learners, blend, None, (pixels, pixels), classes), path)
    return Built(path, pixels)
