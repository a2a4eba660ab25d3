"""The forms in which a learner can run: in float, at fewer pixels, in 8-bit integers with some blocks in float.

A form knows its votes on the images that validate and its cost, so that a search over forms runs no network.
"""

import copy
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from onnx import ModelProto
from torch.utils.flop_counter import FlopCounterMode

from export.gate import predictor, relative_costs
from export.graph import build_learner_graph
from export.half import halve
from export.quantize import Quantizer
from export.validation import learner_votes, pixel_batches, spread
from tailstack.artifact import Precision
from tailstack.datastore import Split
from tailstack.errors import UserError
from tailstack.images import Pixels, Size
from tailstack.network import Learner
from tailstack.session import open_session

COST_IMAGES = 64
COST_BATCHES = (1, 8)
HALF_TOLERANCE = 0.1
"""Largest difference of a learner's probability in fp16 from that in fp32, on any image that validates: several times
what rounding makes of an image that is torn between two classes, and far below what an overflow makes."""
FEWER_PIXELS = 0.75
"""Of a side, of the resolution that a learner was trained at."""
_PIXEL_STEP = 8
_RANKING_IMAGES = 64
_BLOCKS_IN_FLOAT = (0, 1, 2, 3, 4, 8)
_SIGNED_BLOCKS_IN_FLOAT = 1


@dataclass(frozen=True, eq=False)
class Form:
    """One learner in one form. Two are the same only where they are one object."""

    model: ModelProto
    """A graph as of `export.graph.build_learner_graph`."""
    network: Learner
    """In torch, at the form's resolution."""
    votes: npt.NDArray[np.float32]
    """Its probabilities on the images that validate, `[images, classes]`."""
    cost: float
    """Operations per image; in int8, times the measured ratio to the time of the same in float."""
    precision: Precision = "fp32"
    in_float: tuple[str, ...] = ()
    """Blocks that int8 leaves in float."""
    signed: bool = False
    """Whether int8's activations are."""

    @property
    def text(self) -> str:
        """The form in words."""
        pixels = f"{self.precision} at {self.network.resolution} pixels"
        if self.precision != "int8":
            return pixels
        sign = "signed" if self.signed else "unsigned"
        return f"{pixels}, {sign} activations, {len(self.in_float)} block(s) in float"


@dataclass(frozen=True)
class FormMaker:
    """Makes forms, and measures them.

    Args:
        validation: the images that validate.
        image_size: height and width of the graphs' input, in pixels.
    """

    validation: Split
    image_size: Size

    def in_float(self, network: Learner) -> Form:
        """Return a learner as it is.

        Raises:
            UserError: torch can't export its architecture.
        """
        model = build_learner_graph(network, self.image_size)
        [votes] = self._votes([model], "Votes in float")
        return Form(model, network, votes, operations(network, self.image_size))

    def smaller(self, form: Form) -> Form | None:
        """Return a learner at fewer pixels, or None if its architecture doesn't take so many."""
        network = copy.deepcopy(form.network)
        network.resolution = max(round(FEWER_PIXELS * network.resolution / _PIXEL_STEP), 1) * _PIXEL_STEP
        fixed = network.backbone.pretrained_cfg.get("fixed_input_size")
        if fixed or network.resolution >= form.network.resolution or not _runs(network, self.image_size):
            return None
        return self.in_float(network)

    def in_half(self, form: Form) -> Form:
        """Return a learner in fp16, at the cost of the same in fp32: a CPU can't tell what a GPU gains.

        Raises:
            UserError: a vote is far from its own in fp32, as where activations are too large for fp16.
        """
        model = halve(form.model)
        [votes] = self._votes([model], "Votes in fp16")
        worst = float(np.abs(votes - form.votes).max())
        if not worst <= HALF_TOLERANCE:  # also refuses NaN
            raise UserError(
                f"in fp16 a learner's vote changes by {worst:.1e} (limit {HALF_TOLERANCE:g}): export it in fp32"
            )
        return replace(form, model=model, votes=votes, precision="fp16")

    def in_integers(self, form: Form, calibration: Sequence[Pixels]) -> list[Form]:
        """Return a learner in int8, with more and more of the blocks in float that suffer most, and once signed.

        Args:
            form: in float.
            calibration: batches of training images, uint8 `[batch, height, width, 3]`.
        """
        quantizer = Quantizer(form.model, calibration)
        ranked = quantizer.ranked(np.concatenate(list(calibration))[:_RANKING_IMAGES])
        kept = [ranked[:count] for count in _BLOCKS_IN_FLOAT if count < len(ranked)]
        plans = [(blocks, False) for blocks in kept] + [(ranked[:_SIGNED_BLOCKS_IN_FLOAT], True)]
        models = [quantizer.graph(blocks, signed=signed) for blocks, signed in plans]
        costs = self.costs([form.model, *models])[1:]
        return [
            replace(
                form,
                model=model,
                votes=votes,
                cost=form.cost * cost,
                precision="int8",
                in_float=tuple(blocks),
                signed=signed,
            )
            for model, votes, cost, (blocks, signed) in zip(
                models, self._votes(models, "Votes in int8"), costs, plans, strict=True
            )
        ]

    def costs(self, models: Sequence[ModelProto]) -> list[float]:
        """Return each graph's time as a multiple of the first one's: one thread, the mean of two batch sizes."""
        images = self.sample()
        systems = [
            predictor(open_session(Path("form"), "cpu", 1, content=model.SerializeToString())) for model in models
        ]
        by_batch = [relative_costs(systems, images, batch) for batch in COST_BATCHES]
        return [statistics.mean(costs) for costs in zip(*by_batch, strict=True)]

    def sample(self) -> Pixels:
        """Return the images that costs are measured on."""
        return np.concatenate(list(pixel_batches(spread(self.validation, COST_IMAGES), self.image_size)))

    def _votes(self, models: Sequence[ModelProto], title: str) -> npt.NDArray[np.float32]:
        """Return `[models, images, classes]`."""
        return learner_votes(models, self.validation, self.image_size, title).swapaxes(0, 1)


def operations(learner: Learner, image_size: Size) -> float:
    """Return the floating-point operations of a learner's products for one image."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        learner(torch.zeros((1, *image_size, 3), dtype=torch.uint8))
    return float(counter.get_total_flops())


def _runs(network: Learner, size: Size) -> bool:
    """Return whether a network takes its resolution: some add branches that only fit at multiples of 32 or more."""
    try:
        with torch.inference_mode():
            network(torch.zeros(1, *size, 3, dtype=torch.uint8))
    except RuntimeError:
        return False
    return True
