"""From a trained run to one checked ONNX file: `python -m export RUN`."""

from pathlib import Path

DEFAULT_OUTPUT = Path("models/ensemble.onnx")
"""Where `bentoml serve` looks for it."""
MAX_ACCURACY_DROP = 0.3
"""Points of accuracy on validation that a cheaper graph may cost."""
