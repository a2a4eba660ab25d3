"""From `ensemble.onnx` to HTTP: `bentoml serve`. Nothing here imports torch."""
