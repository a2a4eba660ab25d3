"""A class mix of the user's own: in a request of each kind, in the settings, and what is wrong with one."""

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.prior import load_prior, read_prior
from serving.runtime import Model
from tailstack import datastore as datastores
from tailstack.artifact import CLASS_PRIOR, INPUT, PROBABILITIES, Artifact
from tailstack.datastore import Datastore
from tailstack.errors import UserError
from tailstack.images import decode
from tailstack.session import open_session
from tests.conftest import CLASSES, PRIOR, ROOT
from tests.serving.conftest import ADMIN_KEY, free_port, running, serve_command, serve_environment, wait_for, web

SHARES = dict(zip(CLASSES, [50, 1, 1, 0, 8, 40], strict=True))


@pytest.fixture(scope="module")
def store(tiny_datastore: Path) -> Datastore:
    return datastores.load(tiny_datastore)


@pytest.fixture(scope="module")
def artifact(tiny_model: Path) -> Artifact:
    return Artifact.from_properties(open_session(tiny_model).get_modelmeta().custom_metadata_map, tiny_model)


def graph_answer(model: Path, data: bytes) -> np.ndarray:
    feeds = {INPUT: decode(data)[None], CLASS_PRIOR: np.array(list(SHARES.values()), np.float32)}
    return open_session(model).run([PROBABILITIES], feeds)[0][0]


def by_label(answer: dict[str, Any]) -> np.ndarray:
    found = {item["label"]: item["probability"] for item in answer["predictions"]}
    assert list(found.values()) == sorted(found.values(), reverse=True)
    return np.array([found[label] for label in CLASSES])


def test_every_kind_of_request_answers_as_the_graph_does(server: str, store: Datastore, tiny_model: Path) -> None:
    data, text = store.test.read(3), json.dumps(SHARES)
    image = base64.b64encode(data).decode()
    answers = [
        web.post(f"{server}/classify", params={"class_prior": text, "top_k": 6}, content=data).json(),
        web.post(f"{server}/classify", data={"class_prior": text, "top_k": "6"}, files={"image": data}).json(),
        web.post(f"{server}/classify", json={"image": image, "class_prior": SHARES, "top_k": 6}).json(),
        *web.post(
            f"{server}/classify/batch", data={"class_prior": text, "top_k": "6"}, files=[("images", data)] * 2
        ).json()["results"],
    ]
    for answer in answers:
        np.testing.assert_allclose(by_label(answer), graph_answer(tiny_model, data), atol=1e-5)
        first = answer["predictions"][0]["label"]
        assert [vote["agrees"] for vote in answer["learners"]] == [
            vote["label"] == first for vote in answer["learners"]
        ]


def test_votes_and_sets_are_the_models_own(server: str, store: Datastore) -> None:
    data, text = store.test.read(3), json.dumps(SHARES)
    own, other = (
        web.post(f"{server}/classify", params={"coverage": "0.9", **prior}, content=data).json()
        for prior in ({}, {"class_prior": text})
    )
    assert own["predictions"] != other["predictions"]
    for answer in (own, other):
        for vote in answer["learners"]:
            del vote["agrees"]
    assert own["learners"] == other["learners"]
    assert set(own["uncertainty"]["prediction_set"]) == set(other["uncertainty"]["prediction_set"])


def test_the_model_names_its_own_mix(server: str) -> None:
    assert web.get(f"{server}/model").json()["prior"] == pytest.approx(PRIOR)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Invalid JSON"),
        ("[1]", "should be an object"),
        ("{" * 3000, "Invalid JSON"),
        (json.dumps({**SHARES, "cat": 1}), "there is no class 'cat'"),
        (json.dumps({"disc": 1}), "there is no weight for 'cross'"),
        (json.dumps({**SHARES, "disc": -1}), "disc: Input should be greater than or equal to 0"),
        (json.dumps({**SHARES, "disc": True}), "disc: Input should be a valid number"),
        (json.dumps({**SHARES, "disc": "1"}), "disc: Input should be a valid number"),
        (json.dumps({**SHARES, "disc": float("nan")}), "disc: Input should be a finite number"),
        (json.dumps(dict.fromkeys(CLASSES, 0)), "all weights are 0"),
    ],
)
def test_a_mix_that_cannot_be_used(server: str, store: Datastore, text: str, message: str) -> None:
    response = web.post(f"{server}/classify", data={"class_prior": text}, files={"image": store.test.read(0)})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "bad_class_prior"
    assert message in response.json()["error"]["message"]


def test_extreme_weights_give_distributions(artifact: Artifact) -> None:
    for values in ([1e300, *[1e-300] * 5], [5e-324, *[0] * 5]):
        prior = read_prior(json.dumps(dict(zip(CLASSES, values, strict=True))), artifact)
        found = prior.apply(np.eye(6, dtype=np.float32))
        np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)


def test_a_model_that_knows_no_mix(artifact: Artifact) -> None:
    with pytest.raises(ValueError, match="doesn't know for which class mix"):
        read_prior(json.dumps(SHARES), artifact.model_copy(update={"prior": None}))


def test_the_operators_mix_is_checked_before_the_start(tiny_model: Path, artifact: Artifact, tmp_path: Path) -> None:
    file = tmp_path / "prior.json"
    with pytest.raises(UserError, match=r"prior\.json can't be read"):
        load_prior(file, artifact)
    file.write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"class prior .*prior\.json: "):
        load_prior(file, artifact)
    file.write_text(json.dumps({"disc": 1}))
    with pytest.raises(UserError, match=r"prior\.json: there is no weight for 'cross'"):
        Model.load(tiny_model, class_prior=file)
    environment = serve_environment(TAILSTACK_MODEL=str(tiny_model), TAILSTACK_CLASS_PRIOR_FILE=str(file))
    command = serve_command(free_port())
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert f"error: class prior {file}: there is no weight for 'cross'" in done.stdout + done.stderr


def test_a_changed_mix_is_taken_up(tiny_model: Path, store: Datastore, tmp_path: Path) -> None:
    file, data = tmp_path / "prior.json", store.test.read(3)
    file.write_text(json.dumps(SHARES))
    variables = {"TAILSTACK_CLASS_PRIOR_FILE": str(file), "TAILSTACK_ADMIN_KEYS": ADMIN_KEY}
    with running(tiny_model, tmp_path, **variables, TAILSTACK_RELOAD_INTERVAL="0.2") as server:

        def answer() -> list[float]:
            return by_label(web.post(f"{server.address}/classify", params={"top_k": 6}, content=data).json())

        def reloads() -> bool:
            answered = web.post(f"{server.address}/model/reload", headers={"x-api-key": ADMIN_KEY})
            return bool(answered.json()["changed"])

        [plain] = open_session(tiny_model).run([PROBABILITIES], {INPUT: decode(data)[None]})
        assert not np.allclose(answer(), plain[0], atol=1e-3)
        file.write_text(json.dumps(dict(zip(CLASSES, PRIOR, strict=True))))
        wait_for(lambda: np.allclose(answer(), plain[0], atol=1e-5))
        assert not reloads()
    # Where nobody looks, an administrator says so.
    with running(tiny_model, tmp_path, **variables, TAILSTACK_RELOAD_INTERVAL="0") as server:
        assert not reloads()
        file.write_text(json.dumps(SHARES))
        assert reloads()
        assert not np.allclose(answer(), plain[0], atol=1e-3)


def test_the_operators_mix_is_for_requests_without_one(tiny_model: Path, store: Datastore, tmp_path: Path) -> None:
    (tmp_path / "prior.json").write_text(json.dumps(SHARES))
    data = store.test.read(3)
    with running(tiny_model, tmp_path, TAILSTACK_CLASS_PRIOR_FILE=str(tmp_path / "prior.json")) as server:
        set_by_operator = web.post(f"{server.address}/classify", params={"top_k": 6}, content=data).json()
        own = json.dumps(dict(zip(CLASSES, PRIOR, strict=True)))
        asked = web.post(f"{server.address}/classify", params={"top_k": 6, "class_prior": own}, content=data).json()
        tensor = {"name": INPUT, "shape": [1, 32, 32, 3], "datatype": "UINT8", "data": decode(data).ravel().tolist()}
        v2 = web.post(f"{server.address}/v2/models/ensemble/infer", json={"inputs": [tensor]}).json()
    expected = graph_answer(tiny_model, data)
    np.testing.assert_allclose(by_label(set_by_operator), expected, atol=1e-5)
    np.testing.assert_allclose(v2["outputs"][0]["data"], expected, atol=1e-5)
    [plain] = open_session(tiny_model).run([PROBABILITIES], {INPUT: decode(data)[None]})
    np.testing.assert_allclose(by_label(asked), plain[0], atol=1e-5)
