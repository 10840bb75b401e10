"""Which folders are accepted as a cache."""

import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jitd.cache.errors import CacheFolderError
from jitd.cache.paths import MARKER, default_root, is_network_filesystem, open_root

NOBODY = 65534


@pytest.fixture
def shared(as_root: None) -> Iterator[Path]:
    """A folder that every user can reach, which pytest's own is not."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        path.chmod(0o755)
        yield path


def test_a_new_cache_is_private_and_marked(tmp_path: Path) -> None:
    """Whatever the umask, a new cache and the folders made for it are 0700, marked and tagged."""
    for umask in (0o000, 0o022, 0o777):
        previous = os.umask(umask)
        try:
            root = open_root(tmp_path / f"{umask:o}" / "cache")
        finally:
            os.umask(previous)
        assert stat.S_IMODE(root.stat().st_mode) == 0o700
        assert stat.S_IMODE(root.parent.stat().st_mode) == 0o700
        names = sorted(path.name for path in root.iterdir())
        assert names == [MARKER, "CACHEDIR.TAG"]
        assert (root / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172")


def test_a_cache_opens_again(root: Path) -> None:
    """Opening is repeatable, with or without `create`, and changes nothing the second time."""
    before = {path.name: path.stat().st_mtime_ns for path in root.iterdir()}
    assert open_root(root) == open_root(root, create=False) == open_root(str(root)) == root
    assert {path.name: path.stat().st_mtime_ns for path in root.iterdir()} == before


def test_an_empty_folder_becomes_a_cache(tmp_path: Path) -> None:
    """A folder made by hand is taken if it is empty."""
    assert (open_root(tmp_path) / MARKER).is_file()


def test_somebodys_folder_is_refused(tmp_path: Path) -> None:
    """A folder with things in it that jitd did not put there can never be cleared as a cache."""
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(CacheFolderError, match=r"not empty.*'thesis.tex'"):
        open_root(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702, 0o1777])
def test_a_folder_that_others_may_write_is_refused(root: Path, mode: int) -> None:
    """Writable by the group or by all is refused, with the command that mends it."""
    root.chmod(mode)
    with pytest.raises(CacheFolderError, match=rf"others may write it .*chmod go-w {root}"):
        open_root(root)


def test_a_folder_that_others_may_replace_is_refused(tmp_path: Path) -> None:
    """Below a folder that all may write, without the sticky bit, nothing is safe."""
    open_root(tmp_path / "open" / "cache")
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(CacheFolderError, match="anybody may replace it"):
        open_root(tmp_path / "open" / "cache")
    (tmp_path / "open").chmod(0o1777)
    open_root(tmp_path / "open" / "cache")


def test_the_whole_way_is_looked_at(tmp_path: Path) -> None:
    """A folder far above that all may write is as bad: whoever renames one can put theirs there."""
    open_root(tmp_path / "open" / "mine" / "cache")
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(CacheFolderError, match=rf"replace it .*chmod o-w {tmp_path / 'open'}$"):
        open_root(tmp_path / "open" / "mine" / "cache")


def test_what_is_no_cache_is_refused(tmp_path: Path) -> None:
    """A file, a missing folder, an unmarked one and a dangling link each give their reason."""
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CacheFolderError, match="not a folder"):
        open_root(tmp_path / "file")
    with pytest.raises(CacheFolderError, match="Not a directory"):
        open_root(tmp_path / "file" / "below")
    with pytest.raises(CacheFolderError, match="No such file"):
        open_root(tmp_path / "missing", create=False)
    with pytest.raises(CacheFolderError, match="No such file"):
        open_root(tmp_path / "link")
    with pytest.raises(CacheFolderError, match=MARKER):
        open_root(tmp_path / "empty", create=False)


def test_another_layout_is_refused(root: Path) -> None:
    """A cache of another layout is left alone."""
    (root / MARKER).write_text("jitd cache, layout 99\n")
    with pytest.raises(CacheFolderError, match="layout 99"):
        open_root(root)


def test_a_marker_that_is_a_link_is_refused(root: Path, tmp_path: Path) -> None:
    """A link in the marker's place does not mark a folder."""
    (root / MARKER).rename(tmp_path / "marker")
    (root / MARKER).symlink_to(tmp_path / "marker")
    with pytest.raises(CacheFolderError, match=MARKER):
        open_root(root)


def test_the_users_own_link_is_followed(root: Path, tmp_path: Path) -> None:
    """A link made by the user leads to the cache, and the path returned no longer needs it."""
    (tmp_path / "link").symlink_to(root)
    assert open_root(tmp_path / "link") == root


def test_another_users_folder_is_refused(root: Path, as_root: None) -> None:
    """Even root refuses a cache that another user owns: that user can write it."""
    os.chown(root, NOBODY, NOBODY)
    with pytest.raises(CacheFolderError, match=f"owned by uid {NOBODY}"):
        open_root(root)


@pytest.mark.parametrize("place", ["link", "link/cache"])
def test_another_users_link_is_refused(tmp_path: Path, as_root: None, place: str) -> None:
    """A link that somebody else planted, anywhere on the way, leads nowhere."""
    target = open_root(tmp_path / "there" / "cache")
    link = tmp_path / "link"
    link.symlink_to(target if place == "link" else target.parent)
    os.lchown(link, NOBODY, NOBODY)
    with pytest.raises(CacheFolderError, match=f"a link owned by uid {NOBODY}"):
        open_root(tmp_path / place)


UNPRIVILEGED = """
import os, sys
from pathlib import Path
from jitd.cache.errors import CacheFolderError, CacheWriteError
from jitd.cache.keys import Key
from jitd.cache.paths import open_root
from jitd.cache.store import Store
os.setgroups([]); os.setgid(65534); os.setuid(65534)
shared, key = Path(sys.argv[1]), Key.of("winner", "silu", n=1)
"""


def test_roots_cache_is_read_by_all(shared: Path, spawn: Callable) -> None:
    """A cache that root warmed hits for a user who cannot write it; a put is a clear error."""
    spawn_root = open_root(shared / "cache")
    writer = """
import sys, os
os.umask(0o022)
from pathlib import Path
from jitd.cache.keys import Key
from jitd.cache.store import Store
Store(Path(sys.argv[1])).put(Key.of("winner", "silu", n=1), {"a": 1})
"""
    assert spawn(writer, spawn_root).exit_code() == 0
    for path in [spawn_root, *spawn_root.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
        os.utime(path, (0, 0))
    reader = spawn(
        UNPRIVILEGED
        + """
store = Store(open_root(shared / "cache"))
print(store.get(key).body)
try:
    store.put(key, {})
except CacheWriteError as error:
    print(error.errno)
""",
        shared,
    )
    assert reader.line() == "{'a': 1}"
    assert reader.line() == "13"


def test_an_unwritable_parent_is_refused(shared: Path, spawn: Callable) -> None:
    """A cache that cannot be made says so as a refused folder, not as a bare OSError."""
    child = spawn(
        UNPRIVILEGED
        + """
try:
    open_root(shared / "new")
except CacheFolderError as error:
    print(error)
""",
        shared,
    )
    assert "Permission denied" in child.line()


def test_two_processes_make_one_cache(tmp_path: Path, spawn: Callable) -> None:
    """Processes that open the same new folder at the same time all get it."""
    code = """
import sys
from pathlib import Path
from jitd.cache.paths import open_root
print("ready", flush=True)
sys.stdin.readline()
for n in range(100):
    open_root(Path(sys.argv[1]) / str(n) / "cache")
"""
    children = [spawn(code, tmp_path) for _ in range(3)]
    assert [child.line() for child in children] == ["ready"] * 3
    for child in children:
        child.say("go")
    assert [child.exit_code() for child in children] == [0] * 3
    assert len([*tmp_path.glob("*/cache/*")]) == 2 * 100


def test_default_root_is_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default follows the XDG rules."""
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_root() == Path("/somewhere/jitd")


def test_network_file_systems_are_named(tmp_path: Path) -> None:
    """The innermost, latest mount decides; blanks in mount points are understood."""
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/vda / ext4 rw 0 0\n"
        "server:/home /home nfs4 rw 0 0\n"
        "tmpfs /home/me/local tmpfs rw 0 0\n"
        "//nas/x /mnt/my\\040share cifs rw 0 0\n"
        "lustre /over lustre rw 0 0\n"
        "/dev/vdb /over ext4 rw 0 0\n"
    )
    expected = {
        "/var/cache": None,
        "/home/me/.cache/jitd": "nfs4",
        "/homestead": None,
        "/home/me/local/jitd": None,
        "/mnt/my share/jitd": "cifs",
        "/over/jitd": None,
    }
    assert {path: is_network_filesystem(path, mounts=mounts) for path in expected} == expected
    assert is_network_filesystem("/home", mounts=tmp_path / "no table") is None
