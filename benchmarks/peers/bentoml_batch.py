"""BentoML as its guide to adaptive batching writes it: `batchable=True`, up to 16 pictures a batch."""

import bentoml
from PIL.Image import Image
from shared import CORES, Classifier


@bentoml.service(threads=CORES, logging={"access": {"enabled": False}})
class Peer:
    """Classifies the pictures of several calls at once."""

    def __init__(self) -> None:
        self.classifier = Classifier()

    @bentoml.api(batchable=True, max_batch_size=16)
    def classify(self, images: list[Image]) -> list[list]:
        """Classify a batch of pictures."""
        return self.classifier.predict([self.classifier.pixels(image) for image in images])
