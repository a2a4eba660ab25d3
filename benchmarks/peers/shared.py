"""What all peers share: the same ONNX file, the same decoding, the same answer."""

import io
import json
import os

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

CORES = len(os.sched_getaffinity(0))
"""That this process may run on. ONNX Runtime by itself takes one for each of the machine's, without hyperthreads."""


class Classifier:
    """The file that `MODEL` names, in ONNX Runtime as it comes, with as many threads as ours takes."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = CORES
        self._session = onnxruntime.InferenceSession(os.environ["MODEL"], options, ["CPUExecutionProvider"])
        about = self._session.get_modelmeta().custom_metadata_map
        height, width = json.loads(about["tailstack.image_size"])
        self._size = (width, height)
        self._classes = json.loads(about["tailstack.classes"])

    def open(self, data: bytes) -> np.ndarray:
        """Decode a picture to uint8 `[height, width, 3]`."""
        return self.pixels(Image.open(io.BytesIO(data)))

    def pixels(self, image: Image.Image) -> np.ndarray:
        """Scale a picture to cover the model's size, crop the centre: uint8 `[height, width, 3]`."""
        # A JPEG is decoded at a fraction of its size where that is enough, as ours is.
        image.draft(image.mode, self._size)
        return np.asarray(ImageOps.fit(image.convert("RGB"), self._size, Image.Resampling.BILINEAR))

    def predict(self, images: list[np.ndarray]) -> list[list[dict]]:
        """Return the five most probable classes of each of a batch of pictures."""
        probabilities = self._session.run(["probabilities"], {"images": np.stack(images)})[0]
        return [self._answer(row) for row in probabilities]

    def _answer(self, probabilities: np.ndarray) -> list[dict]:
        best = np.argsort(probabilities)[::-1][:5]
        return [{"label": self._classes[index], "probability": float(probabilities[index])} for index in best]
