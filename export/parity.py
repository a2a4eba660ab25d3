"""The checks that a file passes before it appears under its name: ONNX's own, and the answers of its origin."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch

from tailstack.artifact import INPUT, LEARNER_PROBABILITIES, PROBABILITIES
from tailstack.datastore import Split
from tailstack.errors import UserError
from tailstack.images import Pixels, Size
from tailstack.session import open_session

TOLERANCE = 1e-4
"""Largest difference of a probability from the reference's."""
BATCHES = (1, 3, 8)
Reference = Callable[[torch.Tensor], tuple[torch.Tensor, ...]]
"""What a file has to answer: uint8 images, as the file takes them, to each of its outputs."""


def sample_images(test: Split, size: Size) -> Pixels:
    """Decode images spread over the test split, enough for the largest batch: uint8 `[images, height, width, 3]`."""
    return test.decode_batch(test.spread(max(BATCHES)), size)


def check_graph(path: Path) -> None:
    """Run ONNX's full check, and refuse operators outside the standard, which other runtimes may not know.

    Raises:
        UserError: naming what fails.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise UserError(f"the exported graph fails onnx's check: {error}") from error
    # The check has seen to it that a model names the domain of every operator that it uses, in subgraphs too.
    foreign = {opset.domain for opset in onnx.load(path).opset_import} - {"", "ai.onnx"}
    if foreign:
        raise UserError(f"the exported graph has operators outside the ONNX standard: {', '.join(sorted(foreign))}")


def verify_parity(
    path: Path,
    reference: Reference,
    images: Pixels,
    outputs: Sequence[str] = (PROBABILITIES, LEARNER_PROBABILITIES),
    name: str = "torch",
) -> dict[str, float]:
    """Compare the file's answers with a reference's, at several batch sizes.

    Args:
        path: the ONNX file.
        reference: what it was exported from.
        images: uint8 `[images, height, width, 3]`, at least as many as the largest batch.
        outputs: what is compared, in the order of the reference's answers; the first are the probabilities.
        name: of the reference, for the error's text.

    Returns:
        Largest difference of any probability, by batch size.

    Raises:
        UserError: a difference is above `TOLERANCE`, or a most probable class differs.
    """
    # On the CPU, as torch: GPUs round the factors of convolutions (TF32).
    session = open_session(path, "cpu")
    differences = {}
    for batch in BATCHES:
        part = images[:batch]
        answers = session.run(list(outputs), {INPUT: part})
        with torch.inference_mode():
            expected = [output.numpy() for output in reference(torch.from_numpy(part))]
        worst = max(float(np.abs(a - b).max()) for a, b in zip(answers, expected, strict=True))
        same_top1 = np.array_equal(answers[0].argmax(axis=1), expected[0].argmax(axis=1))
        # `not <=` also refuses NaN.
        if not worst <= TOLERANCE or not same_top1:
            raise UserError(
                f"the exported graph doesn't answer as {name} does: at batch {batch} the largest difference is "
                f"{worst:.1e} (limit {TOLERANCE:g}), top-1 {'equal' if same_top1 else 'different'}; no file was written"
            )
        differences[str(batch)] = worst
    return differences
