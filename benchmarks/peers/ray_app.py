"""Ray Serve, with a FastAPI ingress and its batching: up to 16 requests that arrive within 5 ms."""

import asyncio
import os
from typing import Annotated

from fastapi import FastAPI, File
from ray import serve
from shared import Classifier

api = FastAPI()


@serve.deployment(
    max_ongoing_requests=64, ray_actor_options={"num_cpus": 1}, logging_config={"enable_access_log": False}
)
@serve.ingress(api)
class Ingress:
    """Decodes pictures, and classifies them in batches, both outside the event loop."""

    def __init__(self):
        self.classifier = Classifier()

    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.005)
    async def predict(self, images):
        """Classify a batch."""
        return await asyncio.to_thread(self.classifier.predict, images)

    @api.get("/ready")
    def ready(self) -> bool:
        """Answer once the model is loaded."""
        return True

    @api.post("/classify")
    async def classify(self, image: Annotated[bytes, File()]) -> dict:
        """Classify a picture."""
        pixels = await asyncio.to_thread(self.classifier.open, image)
        return {"predictions": await self.predict(pixels)}


if __name__ == "__main__":
    http = {"host": "127.0.0.1", "port": int(os.environ["PORT"])}
    serve.start(http_options=http, logging_config={"enable_access_log": False})
    serve.run(Ingress.bind(), blocking=True)
