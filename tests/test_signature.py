"""Signatures: what passes, and what is refused with which words."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tailstack.errors import UserError
from tailstack.signature import check_private_key, check_signature, sign, signature_file
from tests.keys import key_pair

CONTENT = b"a model" * 1000


@pytest.fixture
def signed(tmp_path: Path) -> tuple[Path, Path]:
    """A signed file, and the public key."""
    private, public = key_pair(tmp_path)
    path = tmp_path / "model.onnx"
    path.write_bytes(CONTENT)
    assert sign(path, private) == signature_file(path)
    return path, public


def test_a_signed_file_passes(signed: tuple[Path, Path]) -> None:
    path, public = signed
    check_signature(path, CONTENT, public)


def test_the_tool_of_model_signing_says_the_same(signed: tuple[Path, Path]) -> None:
    path, public = signed
    command = [str(Path(sys.executable).with_name("model_signing")), "verify", "key", str(path)]
    command += ["--signature", str(signature_file(path)), "--public_key", str(public)]
    subprocess.run(command, check=True, capture_output=True)
    path.write_bytes(CONTENT + b"x")
    assert subprocess.run(command, check=False, capture_output=True).returncode


def test_what_counts_is_what_was_read(signed: tuple[Path, Path]) -> None:
    path, public = signed
    with pytest.raises(UserError, match=r"doesn't fit its signature model\.onnx\.sig: .*mismatch"):
        check_signature(path, CONTENT + b"x", public)


@pytest.mark.parametrize("damage", [bytes.upper, lambda _: b"", lambda _: b"\xff{", lambda _: b"{}", lambda _: b"[1]"])
def test_a_damaged_signature(signed: tuple[Path, Path], damage: Callable[[bytes], bytes]) -> None:
    path, public = signed
    signature = signature_file(path)
    signature.write_bytes(damage(signature.read_bytes()))
    with pytest.raises(UserError, match=r"doesn't fit its signature model.onnx.sig"):
        check_signature(path, CONTENT, public)


def test_no_signature(signed: tuple[Path, Path]) -> None:
    path, public = signed
    signature_file(path).unlink()
    with pytest.raises(UserError, match=r"is not signed: model.onnx.sig isn't beside it"):
        check_signature(path, CONTENT, public)


def test_a_signature_by_another_key(signed: tuple[Path, Path], tmp_path: Path) -> None:
    _, other = key_pair(tmp_path, "other")
    with pytest.raises(UserError, match="doesn't fit its signature"):
        check_signature(signed[0], CONTENT, other)


def test_keys_that_can_not_be_used(signed: tuple[Path, Path], tmp_path: Path) -> None:
    path, _ = signed
    text = tmp_path / "text.pem"
    text.write_text("no key")
    rsa = key_pair(tmp_path, "rsa", kind="rsa")
    for key in (text, rsa[0]):
        with pytest.raises(UserError, match="can't be used: it is no key of an elliptic curve in PEM"):
            check_private_key(key)
    for key in (text, rsa[1]):
        with pytest.raises(UserError, match="can't be used: it is no key of an elliptic curve in PEM"):
            check_signature(path, CONTENT, key)
    for check in (check_private_key, lambda key: check_signature(path, CONTENT, key)):
        with pytest.raises(UserError, match="can't be used: No such file"):
            check(tmp_path / "missing.pem")


def test_without_the_extra(signed: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path, public = signed
    monkeypatch.setitem(sys.modules, "model_signing.verifying", None)
    with pytest.raises(UserError, match="tailstack\\[signing\\]"):
        check_signature(path, CONTENT, public)
