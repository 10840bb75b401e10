"""Ed25519 keys in PEM files, by the package `cryptography`: for bundles that can be trusted."""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from . import files
from .errors import KeyRefused

_MAX_KEY_BYTES: Final = 1 << 14


def make_keys(path: Path) -> Path:
    """A new private key at `path` (0600), and the public one at `path`.pub, which is returned.

    Raises KeyRefused rather than replace a file.
    """
    serialization, ed25519 = _cryptography()
    key = ed25519.Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    beside = path.with_name(f"{path.name}.pub")
    for place in (path, beside):
        if os.path.lexists(place):
            raise KeyRefused(f"{place} is there already, and a key is never replaced. Name another")
    for place, text in ((path, private), (beside, public)):
        try:
            _write_new(place, text)
        except OSError as error:
            raise KeyRefused(f"cannot write {place}: {error.strerror}.") from error
    return beside


def signer(path: Path) -> Callable[[bytes], bytes]:
    """What signs with the private key at `path`, a file that only its owner may read.

    Raises KeyRefused.
    """
    serialization, ed25519 = _cryptography()
    text = _read(path, 0o077, f"others may read it. Run: chmod 600 {path}")
    try:
        key = serialization.load_pem_private_key(text, password=None)
    except (ValueError, TypeError, _unsupported()) as error:
        raise KeyRefused(f"{path} is no private key in PEM, unencrypted: {error}") from error
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise KeyRefused(f"{path} is no Ed25519 key. To make one: jitctl keygen PATH")
    sign: Callable[[bytes], bytes] = key.sign
    return sign


def verifier(path: Path) -> Callable[[bytes, bytes], bool]:
    """What says whether (signature, message) is by the key whose public half is at `path`.

    Raises KeyRefused, also for a file that others may write: they could put their own key there.
    """
    serialization, ed25519 = _cryptography()
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415

    text = _read(path, 0o022, f"others may write it. Run: chmod go-w {path}")
    try:
        key = serialization.load_pem_public_key(text)
    except (ValueError, TypeError, _unsupported()) as error:
        raise KeyRefused(f"{path} is no public key in PEM: {error}") from error
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise KeyRefused(f"{path} is no Ed25519 key. To make one: jitctl keygen PATH")

    def verify(signature: bytes, message: bytes) -> bool:
        try:
            key.verify(signature, message)
        except InvalidSignature:
            return False
        return True

    return verify


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - 40 ms
        from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: PLC0415
    except ImportError as error:
        raise KeyRefused(
            "signatures need the package cryptography. Run: pip install 'jitd[sign]'"
        ) from error
    return serialization, ed25519


def _unsupported() -> type[Exception]:
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415

    found: type[Exception] = UnsupportedAlgorithm
    return found


def _read(path: Path, forbidden: int, remedy: str) -> bytes:
    """A key's file, which may be reached by a link (as secrets are mounted)."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise KeyRefused(f"key {path}: {error.strerror}.") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise KeyRefused(f"key {path} refused: it is no regular file.")
        if status.st_uid not in (os.geteuid(), 0):
            raise KeyRefused(f"key {path} refused: it is owned by uid {status.st_uid}.")
        if status.st_mode & forbidden:
            mode = f"{stat.S_IMODE(status.st_mode):04o}"
            raise KeyRefused(f"key {path} refused: its mode is {mode}: {remedy}")
        return files.read_up_to(descriptor, _MAX_KEY_BYTES)
    finally:
        os.close(descriptor)


def _write_new(path: Path, text: bytes) -> None:
    """Write a private file that appears whole and never takes another's place."""
    temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    descriptor = files.new(temporary)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(text)
        os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
