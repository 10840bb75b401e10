"""What the cache and its bundles are to other users of the machine."""

import errno
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jitd.cache import files
from jitd.cache.bundle import opened, write
from jitd.cache.errors import BadBundle, KeyRefused
from jitd.cache.keys import Key
from jitd.cache.records import decode, encode
from jitd.cache.signing import make_keys, signer, verifier

STRANGER = 54_321
KEY = Key.of("winner", "silu", n=1)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder like /tmp: all may put things there, and remove their own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        path.chmod(0o1777)
        yield path


@pytest.mark.parametrize("umask", ["000", "022", "077", "277", "777"])
def test_modes_do_not_depend_on_the_umask(shared: Path, spawn: Callable, umask: str) -> None:
    """A user with any umask can write, read and lock, and all is 0700 and 0600."""
    code = """
import os, sys
from pathlib import Path
from filelock import FileLock, SoftFileLock, Timeout  # before the user may not read the stdlib
from jitd.cache.keys import Key
from jitd.cache.locks import KeyLocks
from jitd.cache.paths import open_root
from jitd.cache.store import Store
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
os.umask(int(sys.argv[2], 8))
store, key = Store(open_root(Path(sys.argv[1]) / "cache")), Key.of("winner", "silu", n=1)
store.put(key, {"a": 1})
with KeyLocks(store.root).hold(key):
    print(store.get(key).body)
"""
    child = spawn(code, shared, umask)
    assert child.line() == "{'a': 1}"
    assert child.exit_code() == 0
    inner = [path for path in (shared / "cache").rglob("*") if len(path.parts) > 4]
    for path in [shared / "cache", *inner]:
        if path.name in (".jitd-cache", "CACHEDIR.TAG"):  # which say nothing
            continue
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_a_bundle_is_private_whatever_the_umask(tmp_path: Path) -> None:
    """A bundle and a private key are 0600 under every umask, and can be read by their owner."""
    for umask in (0o000, 0o777):
        previous = os.umask(umask)
        try:
            write(tmp_path / f"b{umask}", [_record()])
            make_keys(tmp_path / f"k{umask}")
        finally:
            os.umask(previous)
        for name in (f"b{umask}", f"k{umask}", f"k{umask}.pub"):
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


def test_a_new_file_that_cannot_be_made_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing stays of a file whose mode cannot be set; another's in its place is not touched."""

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fchmod", refuse)
        previous = os.umask(0o777)
        try:
            with pytest.raises(PermissionError):
                files.new(tmp_path / "mine")
        finally:
            os.umask(previous)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "theirs").write_text("theirs")
    with pytest.raises(FileExistsError):
        files.new(tmp_path / "theirs")
    assert (tmp_path / "theirs").read_text() == "theirs"


def test_links_that_a_stranger_planted(shared: Path, as_root: None) -> None:
    """In a folder that all may write, a planted link is neither written through nor read."""
    victim = shared / "victim"
    victim.write_text("mine")
    link = shared / "b"
    link.symlink_to(victim)
    os.lchown(link, STRANGER, STRANGER)
    with pytest.raises(BadBundle, match="no regular file is in its place"):
        write(link, [_record()])
    with pytest.raises(BadBundle, match="it is a link"), opened(link):
        pass
    assert victim.read_text() == "mine"
    assert sorted(path.name for path in shared.iterdir()) == ["b", "victim"]


def test_a_strangers_keys(tmp_path: Path, as_root: None) -> None:
    """A key that another user owns is refused: they could put another in its place."""
    public = make_keys(tmp_path / "k")
    for path in (tmp_path / "k", public):
        os.chown(path, STRANGER, STRANGER)
    with pytest.raises(KeyRefused, match=f"owned by uid {STRANGER}"):
        signer(tmp_path / "k")
    with pytest.raises(KeyRefused, match=f"owned by uid {STRANGER}"):
        verifier(public)


def test_keys_sign_and_verify(tmp_path: Path) -> None:
    """A signature is by one key, of one message; a new key takes no other's place."""
    public, other = make_keys(tmp_path / "k"), make_keys(tmp_path / "other")
    signature = signer(tmp_path / "k")(b"message")
    assert verifier(public)(signature, b"message")
    assert not verifier(public)(signature, b"massage")
    assert not verifier(other)(signature, b"message")
    assert not verifier(public)(bytes(64), b"message")
    before = (tmp_path / "k").read_bytes()
    with pytest.raises(KeyRefused, match="never replaced"):
        make_keys(tmp_path / "k")
    assert (tmp_path / "k").read_bytes() == before


def _record() -> object:
    return decode(encode(KEY, {"a": 1}, label="", meta={}, created=1.0), KEY)
