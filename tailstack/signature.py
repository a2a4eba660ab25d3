"""Signatures of model files, by OpenSSF model-signing, with a key pair of the user's own.

What a file's SHA-256 beside it can't tell is who made the file: whoever replaces one may replace the other.
"""

import importlib
import tempfile
from pathlib import Path
from types import ModuleType

from tailstack.errors import UserError
from tailstack.files import whole_file

_UNUSABLE = (OSError, ValueError, TypeError, AttributeError)
"""What model-signing raises where a key isn't there, isn't PEM, has a password, or is of another kind."""


def signature_file(path: Path) -> Path:
    """Return where a model file's signature is, if it has one: a Sigstore bundle in JSON."""
    return path.with_name(f"{path.name}.sig")


def sign(path: Path, private_key: Path) -> Path:
    """Sign a file, and return where the signature is.

    Args:
        path: the file.
        private_key: an elliptic curve's, as PEM, without a password.

    Raises:
        UserError: the extra `signing` isn't installed, the key can't be used, or the signature can't be written.
    """
    signer = _signer(private_key)
    with whole_file(signature_file(path)) as part:
        signer.sign(path, part)
    return signature_file(path)


def check_private_key(private_key: Path) -> None:
    """See that a key can sign, before there is anything to sign.

    Raises:
        UserError: the extra `signing` isn't installed, or the key can't be used.
    """
    _signer(private_key)


def check_signature(path: Path, content: bytes, public_key: Path) -> None:
    """See that a model file was signed with the private part of a key.

    Args:
        path: the file; its signature lies beside it.
        content: the file's bytes, as they were read to be loaded: the file itself may be another one by now.
        public_key: the key, as PEM.

    Raises:
        UserError: the extra `signing` isn't installed, the key can't be read, or the signature is missing, damaged, of
            another key or of another file.
    """
    signature = signature_file(path)
    if not signature.is_file():
        raise UserError(f"model {path} is not signed: {signature.name} isn't beside it")
    verifying = _module("verifying")
    try:
        verifier = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except _UNUSABLE as error:
        raise _unusable(public_key, error) from error
    with tempfile.TemporaryDirectory(prefix="tailstack-") as folder:
        copy = Path(folder) / path.name
        copy.write_bytes(content)
        try:
            verifier.verify(copy, signature)
        # What a damaged bundle raises is not documented.
        except Exception as error:
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise UserError(f"model {path} doesn't fit its signature {signature.name}: {reason}") from error


def _signer(private_key: Path) -> "ModuleType":
    try:
        return _module("signing").Config().use_elliptic_key_signer(private_key=private_key)  # type: ignore[no-any-return]
    except _UNUSABLE as error:
        raise _unusable(private_key, error) from error


def _unusable(key: Path, error: Exception) -> UserError:
    reason = error.strerror if isinstance(error, OSError) else "it is no key of an elliptic curve in PEM"
    return UserError(f"key {key} can't be used: {reason}")


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(f"model_signing.{name}")
    except ImportError as error:
        raise UserError("signatures need the extra of that name: pip install 'tailstack[signing]'") from error
