"""MLServer: a custom runtime for pictures as base64 in the Open Inference Protocol; `mlserver/` configures it."""

import json

from mlserver import MLModel
from mlserver.codecs import StringCodec
from mlserver.types import InferenceRequest, InferenceResponse
from shared import Classifier


class ClassifierRuntime(MLModel):
    """Classifies the pictures that adaptive batching has put into one request."""

    async def load(self) -> bool:
        """Load the model."""
        self.classifier = Classifier()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Classify a batch."""
        images = [self.classifier.open(data) for data in self.decode(payload.inputs[0])]
        answers = [json.dumps(answer, ensure_ascii=False) for answer in self.classifier.predict(images)]
        output = StringCodec.encode_output("predictions", answers)
        return InferenceResponse(model_name=self.name, outputs=[output])
