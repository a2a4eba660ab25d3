"""The commands that a user types, one after the other, on a folder of pictures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tailstack import datastore as datastores
from tailstack.artifact import INPUT, PROBABILITIES, Artifact
from tailstack.images import decode
from tailstack.metrics import top_k
from tailstack.session import open_session

ROOT = Path(__file__).parents[1]
TINY = [
    *("--architectures", '["lcnet_035", "mobilenetv3_small_050"]'),
    *("--pretrained", "false", "--resolution", "32", "--epochs", "1", "--batch_size", "16", "--num_workers", "0"),
]


def command(*words: object) -> "subprocess.CompletedProcess[str]":
    line = [sys.executable, *map(str, words)]
    # One thread: the same sums in the same order, and tiny networks train fastest on it, on busy machines by far.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200, check=False)


@pytest.fixture(scope="module")
def run(tiny_datastore: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("end-to-end") / "run"
    result = command("-m", "training", "fit", "--datastore", tiny_datastore, "--output", output, *TINY)
    assert result.returncode == 0, result.stderr
    for row in ("0-lcnet_035", "1-mobilenetv3_small_050", "average learner", "ensemble"):
        assert row in result.stdout
    return output


def test_fit_export_and_the_file_agree(run: Path, tiny_datastore: Path, tmp_path: Path) -> None:
    model = tmp_path / "ensemble.onnx"
    result = command("-m", "export", run, "--output", model)
    assert result.returncode == 0, result.stderr
    store = datastores.load(tiny_datastore)
    session = open_session(model)
    artifact = Artifact.from_properties(session.get_modelmeta().custom_metadata_map, model)
    images = np.stack([decode(store.test.read(i), artifact.image_size) for i in range(len(store.test))])
    (probabilities,) = session.run([PROBABILITIES], {INPUT: images})
    fitted = json.loads((run / "ensemble.json").read_text())["results"]["top1"]
    assert top_k(probabilities, store.test.labels, 1) == pytest.approx(fitted, abs=1e-6)
    assert artifact.accuracy["top1"] == fitted


def test_the_config_of_a_run_repeats_it(run: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    result = command("-m", "training", "fit", "--config", run / "config.yaml", "--output", again)
    assert result.returncode == 0, result.stderr
    for learner in (run / "learners").iterdir():
        weights = learner / "weights.safetensors"
        assert weights.read_bytes() == (again / "learners" / learner.name / "weights.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["fit", "--datastore", "no/such", "--output", "{tmp}/run"], "no/such doesn't exist"),
        (["fit", "--datastore", "{data}", "--output", "/proc/run"], "/proc/run"),
        (
            ["fit", "--datastore", "{data}", "--output", "{tmp}/run", "--architectures", '["efficientnet_litee0"]'],
            "did you mean",
        ),
        (["fit", "--datastore", "{data}", "--output", "{tmp}/run", "--technique", "magic"], "stacking-wl"),
        (["fit", "--datastore", "{data}", "--output", "{tmp}/run", "--epochs", "0"], "--epochs is 0"),
        (["prepare", "no/such", "--output", "{tmp}/d"], "no/such doesn't exist"),
    ],
)
def test_a_mistake_gets_one_clear_line(words: list[str], says: str, tiny_datastore: Path, tmp_path: Path) -> None:
    filled = [word.format(tmp=tmp_path, data=tiny_datastore) for word in words]
    result = command("-m", "training", *filled)
    assert result.returncode == 1
    assert says in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["-m", "training", "fit", "--output", "o"], "datastore"),
        (
            ["-m", "training", "fit", "--datastore", "d", "--output", "o", "--nosuch", "3"],
            "unrecognized arguments: --nosuch",
        ),
        (["-m", "training", "fit", "--datastore", "d", "--output", "o", "--epochs", "many"], "Got value: many"),
        (["-m", "training", "train"], "choose from 'prepare', 'fit'"),
        (["-m", "export"], "required: run"),
        (["benchmarks/eval.py", "--nosuch", "1"], "nosuch"),
    ],
)
def test_flags_that_there_are_not_are_answered_without_pages_of_usage(words: list[str], says: str) -> None:
    result = command(*words)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert says in result.stderr
    assert len(result.stderr.splitlines()) <= 3


def test_an_unfinished_run_is_not_exported(run: Path, tmp_path: Path) -> None:
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    result = command("-m", "export", unfinished, "--output", tmp_path / "x.onnx")
    assert result.returncode == 1
    assert "isn't finished" in result.stderr
    assert not (tmp_path / "x.onnx").exists()
