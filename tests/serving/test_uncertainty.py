"""The answer that a request for uncertainty gets: a prediction set and the learners' disagreement."""

from pathlib import Path

import numpy as np
import pytest

from serving.batcher import Result
from serving.protocol import Options, image_result
from serving.runtime import Model
from tailstack import datastore as datastores
from tailstack.datastore import Datastore
from tests.serving.conftest import web


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Model:
    return Model.load(tiny_model)


@pytest.fixture(scope="module")
def store(tiny_datastore: Path) -> Datastore:
    return datastores.load(tiny_datastore)


def result(votes: list[list[float] | None], classes: int) -> Result:
    """A result of learners' votes of the first classes; None is a learner that a cascade didn't ask."""
    full = np.zeros((len(votes), classes), np.float32)
    for row, vote in zip(full, votes, strict=True):
        row[: len(vote or [])] = vote or []
    mean = full[[vote is not None for vote in votes]].mean(axis=0)
    choices = [None if vote is None else int(row.argmax()) for row, vote in zip(full, votes, strict=True)]
    return Result(mean, full, np.argsort(-mean, kind="stable"), choices)


@pytest.mark.parametrize(
    ("votes", "expected"),
    [
        ([[1.0, 0.0], [0.0, 1.0]], 1.0),
        ([[0.7, 0.3], [0.7, 0.3]], 0.0),
        ([[1.0, 0.0], None], 0.0),
        # Entropy of (3/4, 1/4) less half of that of (1/2, 1/2), in bits.
        ([[1.0, 0.0], [0.5, 0.5]], 0.811278 - 0.5),
    ],
)
def test_disagreement(model: Model, votes: list[list[float] | None], expected: float) -> None:
    options = Options(coverage="0.9")
    found = image_result(model, result(votes, len(model.artifact.classes)), options).uncertainty
    assert found is not None
    assert found.disagreement == pytest.approx(expected, abs=1e-5)


def test_a_request_gets_the_set_of_its_coverage(server: str, store: Datastore, model: Model) -> None:
    data = store.test.read(0)
    offered = web.get(f"{server}/model").json()["coverages"]
    assert offered == [0.9, 0.95, 0.99]
    sizes = []
    for coverage in offered:
        answer = web.post(f"{server}/classify", params={"coverage": coverage, "top_k": 6}, content=data).json()
        found = answer["uncertainty"]
        assert found["coverage"] == coverage
        order = [prediction["label"] for prediction in answer["predictions"]]
        assert found["prediction_set"] == [label for label in order if label in found["prediction_set"]]
        assert found["prediction_set"][0] == order[0]
        card = model.artifact.prediction_sets
        assert card is not None
        thresholds = dict(zip(model.artifact.classes, card.thresholds[f"{coverage:g}"], strict=True))
        reached = [item["label"] for item in answer["predictions"] if item["probability"] >= thresholds[item["label"]]]
        assert found["prediction_set"] == (reached or order[:1])
        sizes.append(len(found["prediction_set"]))
    assert sizes == sorted(sizes)
    batch = web.post(f"{server}/classify/batch", data={"coverage": "0.90"}, files={"images": data}).json()
    assert batch["results"][0]["uncertainty"]["coverage"] == 0.9
    assert "uncertainty" not in web.post(f"{server}/classify", content=data).json()


@pytest.mark.parametrize("coverage", ["0.5", "1", "nan", "x", "", "9" * 5000])
def test_a_coverage_that_is_not_offered_is_refused(server: str, store: Datastore, coverage: str) -> None:
    response = web.post(f"{server}/classify", params={"coverage": coverage}, content=store.test.read(0))
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "bad_coverage"
    assert "0.9, 0.95, 0.99" in response.json()["error"]["message"]
