"""What the stages of Tailstack share: the file formats that join them, one image decoder, one set of metrics."""

import os

# Torch's OpenMP threads spin while they wait for each other. Where another process wants the cores too, that costs most
# of the speed: two trainings on two cores ran at 4 images/s instead of 24. It is read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# ONNX Runtime has telemetry of its own, which writes into the home folder.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
