"""FastAPI and ONNX Runtime: a plain `def` route, which runs in the thread pool."""

from typing import Annotated

from fastapi import FastAPI, File
from shared import Classifier

app = FastAPI()
classifier = Classifier()


@app.get("/ready")
def ready() -> bool:
    """Answer once the model is loaded."""
    return True


@app.post("/classify")
def classify(image: Annotated[bytes, File()]) -> dict:
    """Classify a picture."""
    return {"predictions": classifier.predict([classifier.open(image)])[0]}
