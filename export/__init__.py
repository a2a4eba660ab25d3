"""From a trained run to one checked ONNX file: `python -m export RUN`."""

from pathlib import Path

DEFAULT_OUTPUT = Path("models/ensemble.onnx")
"""Where `bentoml serve` looks for it."""
