"""LitServe, with its batching: up to 16 requests that arrive within 5 ms."""

import os

import litserve
from shared import Classifier


class ClassifierAPI(litserve.LitAPI):
    """The steps of a request, as LitServe names them."""

    def setup(self, device):
        """Load the model."""
        self.classifier = Classifier()

    def decode_request(self, request):
        """Decode a form's picture."""
        return self.classifier.open(request["image"].file.read())

    def batch(self, inputs):
        """Keep the pictures of a batch in a list."""
        return list(inputs)

    def predict(self, images):
        """Classify a batch."""
        return self.classifier.predict(images)

    def unbatch(self, output):
        """Return the answers of a batch one by one."""
        return list(output)

    def encode_response(self, output):
        """Wrap an answer."""
        return {"predictions": output}


if __name__ == "__main__":
    api = ClassifierAPI(max_batch_size=16, batch_timeout=0.005, api_path="/classify")
    server = litserve.LitServer(api, accelerator="cpu")
    server.run(host="127.0.0.1", port=int(os.environ["PORT"]), generate_client_file=False, access_log=False)
