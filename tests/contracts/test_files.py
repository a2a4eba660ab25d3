"""Files appear whole or not at all."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tailstack.errors import UserError, run_command
from tailstack.files import make_folder, read_json, sha256, whole_file, write_json, write_text


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_the_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    with whole_file(tmp_path / "a.txt") as part:
        part.write_text("half")
        assert not (tmp_path / "a.txt").exists()
    assert contents(tmp_path) == {"a.txt": "half"}


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")

    def fail() -> None:
        with whole_file(tmp_path / "a.txt") as part:
            part.write_text("new")
            raise ValueError("in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        fail()
    assert contents(tmp_path) == {"a.txt": "old"}


def test_a_killed_writer_leaves_what_was_there(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    script = (
        "import os, signal, sys; from pathlib import Path; from tailstack.files import whole_file\n"
        "with whole_file(Path(sys.argv[1])) as part:\n"
        "    part.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    code = subprocess.run([sys.executable, "-c", script, tmp_path / "a.txt"], env=environment, check=False).returncode
    assert code == -signal.SIGKILL
    assert (tmp_path / "a.txt").read_text() == "old"


def test_folders_on_the_way_are_made(tmp_path: Path) -> None:
    write_json(tmp_path / "a" / "b" / "c.json", {"name": "é"})
    assert read_json(tmp_path / "a" / "b" / "c.json") == {"name": "é"}
    assert "é" in (tmp_path / "a" / "b" / "c.json").read_text(encoding="utf-8")


def test_json_holds_names_that_are_not_utf_8(tmp_path: Path) -> None:
    names = ["caf\udce9.png", "\U0001f600\udc80", "é"]
    write_json(tmp_path / "a.json", names, indent=None)
    assert read_json(tmp_path / "a.json") == names
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't be written"):
        write_text(tmp_path / "file" / "below.txt", "")
    with pytest.raises(UserError, match="can't be made"):
        make_folder(tmp_path / "file" / "below")


def test_json_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="doesn't exist"):
        read_json(tmp_path / "none.json")
    (tmp_path / "cut.json").write_text('{"a": ')
    with pytest.raises(UserError, match="isn't readable JSON"):
        read_json(tmp_path / "cut.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="isn't readable JSON"):
        read_json(tmp_path / "bytes.json")


def test_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    assert sha256(tmp_path / "a") == hashlib.sha256(b"abc" * 100_000).hexdigest()
    write_json(tmp_path / "b.json", {"a": 1}, indent=None)
    assert json.loads((tmp_path / "b.json").read_text()) == {"a": 1}


def test_a_users_mistake_is_one_line_and_an_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise UserError("no such thing; make it with: make it")

    with pytest.raises(SystemExit) as ended:
        run_command(command)
    assert ended.value.code == 1
    assert capsys.readouterr().err == "error: no such thing; make it with: make it\n"


@pytest.mark.parametrize("resumes", [True, False])
def test_ctrl_c_is_one_line_and_an_exit_code(resumes: bool, capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        run_command(command, resumes=resumes)
    assert ended.value.code == 130
    hint = " Run the same command again to go on where it stopped." if resumes else ""
    assert capsys.readouterr().err == f"stopped.{hint}\n"
