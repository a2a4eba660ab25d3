"""What wins for a lone image: only what is clearly faster, measured once, and kept."""

from pathlib import Path

import pytest

from serving import tuning
from serving.runtime import Model
from serving.tuning import Setup, candidates, choose, is_worthwhile, measure, tuned
from tests.serving.conftest import running, web

DEFAULT, RESTING, HALF, EXTENDED = candidates(4)
COMPLETE = 3
"""Rounds that are enough to choose by."""


def times(ratios: dict[Setup, list[float]], rounds: int = COMPLETE) -> tuning.Times:
    """Seconds beside a default that takes one for each situation."""
    every = {DEFAULT: [1.0, 1.0], **ratios}
    names = ("picture", "picture and another one beside it")
    return {setup: {name: [t] * rounds for name, t in zip(names, found, strict=True)} for setup, found in every.items()}


def test_what_is_measured() -> None:
    assert Setup(threads=4) == DEFAULT
    assert Setup(threads=4, spinning=False) == RESTING
    assert Setup(threads=2) == HALF
    assert Setup(threads=4, level="extended") == EXTENDED


@pytest.mark.parametrize(
    ("ratios", "winner"),
    [
        ({}, DEFAULT),
        ({RESTING: [0.7, 1.0]}, RESTING),
        ({RESTING: [0.5, 1.1]}, DEFAULT),  # slower where another picture comes in
        ({RESTING: [0.95, 0.95]}, DEFAULT),  # too little
        ({RESTING: [0.8, 0.8], HALF: [0.7, 0.7]}, HALF),
        ({HALF: [0.7, 1.5], EXTENDED: [0.6, 0.6]}, EXTENDED),
    ],
)
def test_only_a_clear_winner_that_loses_nowhere_is_chosen(ratios: dict[Setup, list[float]], winner: Setup) -> None:
    assert choose(times(ratios)) == winner


def test_one_slow_call_decides_nothing() -> None:
    found = times({RESTING: [0.7, 0.7]})
    found[DEFAULT]["picture and another one beside it"][0] = found[RESTING]["picture"][0] = 9.0
    assert choose(found) == RESTING


def test_too_few_rounds_choose_the_default() -> None:
    assert choose(times({RESTING: [0.1, 0.1]}, COMPLETE - 1)) == DEFAULT


def test_a_measurement_ends_within_its_budget(tiny_model: Path) -> None:
    setups = candidates(2)
    content = tiny_model.read_bytes()
    assert choose(measure(tiny_model, content, setups, budget=0.0)) == setups[0]
    complete = measure(tiny_model, content, setups, budget=1e9)
    assert {len(calls) for found in complete.values() for calls in found.values()} == {tuning.ROUNDS}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of one's own, and measurements in which threads that don't spin win."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    winner = {Setup(threads=2, spinning=False): [0.5, 0.5]}
    monkeypatch.setattr(tuning, "measure", lambda *_: {**times({}), **times(winner)})
    return tmp_path / "cache" / "tailstack"


def test_the_choice_is_measured_once(tiny_model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = tuned(tiny_model, 2)
    assert chosen == Setup(threads=2, spinning=False)
    (file,) = cache.iterdir()
    assert Setup.model_validate_json(file.read_text()) == chosen
    monkeypatch.setattr(tuning, "measure", None)
    assert tuned(tiny_model, 2) == chosen


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b'{"threads": 0}', b'{"threads": 64}'])
def test_a_damaged_cache_is_measured_anew(tiny_model: Path, cache: Path, content: bytes) -> None:
    chosen = tuned(tiny_model, 2)
    (file,) = cache.iterdir()
    file.write_bytes(content)
    assert tuned(tiny_model, 2) == chosen
    assert Setup.model_validate_json(file.read_text()) == chosen


def test_each_model_and_number_of_threads_has_its_own(tiny_model: Path, tmp_path: Path, cache: Path) -> None:
    other = tmp_path / "other.onnx"
    other.write_bytes(tiny_model.read_bytes() + b"\n")
    for model, threads in [(tiny_model, 2), (tiny_model, 3), (other, 2)]:
        tuned(model, threads)
    assert len(list(cache.iterdir())) == 3


def test_without_a_place_to_keep_it_the_choice_still_counts(tiny_model: Path, cache: Path) -> None:
    cache.parent.write_text("a file where the folder would be")
    assert tuned(tiny_model, 2) == Setup(threads=2, spinning=False)


@pytest.mark.parametrize("setup", candidates(2))
def test_no_setup_changes_an_answer(tiny_model: Path, setup: Setup) -> None:
    from tests.serving.test_runtime import TOLERANCE, pixels

    plain, other = (Model.load(tiny_model, "cpu", 2, 4, setup=chosen) for chosen in (None, setup))
    for alone in (True, False):
        difference = plain.classify(pixels(4)).probabilities - other.classify(pixels(4), alone=alone).probabilities
        assert abs(difference).max() < TOLERANCE


def test_what_needs_no_measurement() -> None:
    assert is_worthwhile("onnxruntime", "cpu", 2)
    assert not is_worthwhile("onnxruntime", "cpu", 1)
    assert not is_worthwhile("onnxruntime", "cuda", 2)
    assert not is_worthwhile("openvino", "cpu", 2)


@pytest.mark.parametrize(("tune", "files"), [("on", 1), ("off", 0)])
def test_the_server_measures_before_it_is_ready(tiny_model: Path, tmp_path: Path, tune: str, files: int) -> None:
    variables = {"TAILSTACK_TUNE": tune, "TAILSTACK_THREADS": "2", "TAILSTACK_DEVICE": "cpu"}
    with running(tiny_model, tmp_path, XDG_CACHE_HOME=str(tmp_path), **variables) as server:
        assert web.get(f"{server.address}/model").status_code == 200
        assert len(list(tmp_path.glob("tailstack/tuning-*.json"))) == files
        assert ("measured for" in server.log.read_text()) == bool(files)
