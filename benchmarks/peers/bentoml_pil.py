"""BentoML as its guide writes it: a `PIL.Image` parameter."""

import bentoml
from PIL.Image import Image
from shared import CORES, Classifier


@bentoml.service(threads=CORES, logging={"access": {"enabled": False}})
class Peer:
    """Classifies one picture a call."""

    def __init__(self) -> None:
        self.classifier = Classifier()

    @bentoml.api
    def classify(self, image: Image) -> list:
        """Classify a picture."""
        return self.classifier.predict([self.classifier.pixels(image)])[0]
