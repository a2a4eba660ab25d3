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
PICTURE, TWO = "picture", "picture and another one beside it"


def times(ratios: dict[Setup, list[float]], rounds: int = COMPLETE) -> tuning.Times:
    """Seconds beside a default that takes one for each situation."""
    every = {DEFAULT: [1.0, 1.0], **ratios}
    return {setup: {PICTURE: [lone] * rounds, TWO: [two] * rounds} for setup, (lone, two) in every.items()}


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
    found = times({RESTING: [0.7, 0.7]}, rounds=7)
    found[DEFAULT][TWO][0] = found[RESTING][PICTURE][1] = 9.0
    assert choose(found) == RESTING


def test_what_is_slower_in_many_rounds_is_not_chosen() -> None:
    found = times({RESTING: [0.9, 0.5]}, rounds=6)
    found[RESTING][PICTURE][:2] = [1.3, 1.3]
    assert choose(found) == DEFAULT


def test_a_round_in_which_the_machine_was_slow_counts_by_its_ratio() -> None:
    found = times({RESTING: [1.2, 0.6]})
    found[DEFAULT][PICTURE] = [1.0, 3.0, 3.0]
    found[RESTING][PICTURE] = [1.2, 3.6, 1.2]
    assert choose(found) == DEFAULT


def test_too_few_rounds_choose_the_default() -> None:
    assert choose(times({RESTING: [0.1, 0.1]}, COMPLETE - 1)) == DEFAULT


def test_a_measurement_ends_within_its_budget(tiny_model: Path) -> None:
    setups = candidates(2)
    measured = measure(tiny_model, tiny_model.read_bytes(), setups, budget=0.0)
    assert list(measured) == setups
    assert choose(measured) == setups[0]


def test_what_is_slower_is_measured_no_more(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setups = candidates(2)[:3]
    seconds = iter([1.0, 2.0, 0.5] * 2 * COMPLETE + [1.0, 0.5] * 2 * tuning.ROUNDS)
    monkeypatch.setattr(tuning, "_seconds", lambda *_: next(seconds))
    measured = measure(tiny_model, tiny_model.read_bytes(), setups, budget=1e9)
    rounds = {setup: {len(found) for found in by_situation.values()} for setup, by_situation in measured.items()}
    assert rounds == {setups[0]: {tuning.ROUNDS}, setups[1]: {COMPLETE}, setups[2]: {tuning.ROUNDS}}
    assert choose(measured) == setups[2]


def test_a_measurement_ends_where_only_the_default_is_left(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([1.0, 2.0, 2.0, 2.0] * 2 * COMPLETE)
    monkeypatch.setattr(tuning, "_seconds", lambda *_: next(seconds))
    measured = measure(tiny_model, tiny_model.read_bytes(), candidates(2), budget=1e9)
    assert {len(found) for by_situation in measured.values() for found in by_situation.values()} == {COMPLETE}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of one's own, and measurements in which threads that don't spin win."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    winner = {Setup(threads=2, spinning=False): [0.5, 0.5]}
    monkeypatch.setattr(tuning, "measure", lambda *_: {**times({}), **times(winner)})
    return tmp_path / "cache" / "tailstack"


def test_the_choice_is_measured_once(tiny_model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = tuned(tiny_model, tiny_model.read_bytes(), 2)
    assert chosen == Setup(threads=2, spinning=False)
    (file,) = cache.iterdir()
    assert Setup.model_validate_json(file.read_text()) == chosen
    monkeypatch.setattr(tuning, "measure", None)
    assert tuned(tiny_model, tiny_model.read_bytes(), 2) == chosen


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b'{"threads": 0}', b'{"threads": 64}'])
def test_a_damaged_cache_is_measured_anew(tiny_model: Path, cache: Path, content: bytes) -> None:
    chosen = tuned(tiny_model, tiny_model.read_bytes(), 2)
    (file,) = cache.iterdir()
    file.write_bytes(content)
    assert tuned(tiny_model, tiny_model.read_bytes(), 2) == chosen
    assert Setup.model_validate_json(file.read_text()) == chosen


def test_each_model_and_number_of_threads_has_its_own(tiny_model: Path, tmp_path: Path, cache: Path) -> None:
    other = tmp_path / "other.onnx"
    other.write_bytes(tiny_model.read_bytes() + b"\n")
    for model, threads in [(tiny_model, 2), (tiny_model, 3), (other, 2)]:
        tuned(model, model.read_bytes(), threads)
    assert len(list(cache.iterdir())) == 3


def test_without_a_place_to_keep_it_the_choice_still_counts(tiny_model: Path, cache: Path) -> None:
    cache.parent.write_text("a file where the folder would be")
    assert tuned(tiny_model, tiny_model.read_bytes(), 2) == Setup(threads=2, spinning=False)


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
