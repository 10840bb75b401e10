"""Which folder may be a cache, and how one is made.

Whoever can write a cache can run code on the GPU of those who read it. So a cache belongs to the
user or to root and is writable by its owner alone; anything else is refused with the reason.
"""

import os
import stat
from pathlib import Path
from typing import Final

from .errors import CacheFolderError

MARKER: Final = ".jitd-cache"
LAYOUT_VERSION: Final = 1
_MARKER_TEXT: Final = f"jitd cache, layout {LAYOUT_VERSION}\n"

TAG: Final = "CACHEDIR.TAG"
_TAG_TEXT: Final = """\
Signature: 8a477f597d28d172789f06886806bc55
# This folder is a cache made by jitd: backups may leave it out (https://bford.info/cachedir/).
"""

_NETWORK_FILESYSTEMS: Final = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "coda", "glusterfs", "gpfs", "lustre", "nfs", "nfs4"}
    | {"orangefs", "panfs", "pvfs2", "smb3", "smbfs", "vboxsf", "virtiofs", "wekafs"}
    | {"fuse.ceph", "fuse.gcsfuse", "fuse.glusterfs", "fuse.goofys", "fuse.juicefs"}
    | {"fuse.rclone", "fuse.s3fs", "fuse.sshfs"}
)


def default_root() -> Path:
    """The user's cache folder for jitd, which need not exist: `~/.cache/jitd` on most machines."""
    from platformdirs import user_cache_dir  # noqa: PLC0415 - only callers without a folder pay

    return Path(user_cache_dir("jitd"))


def open_root(path: str | os.PathLike[str], *, create: bool = True) -> Path:
    """The resolved path of the cache at `path`, which is made (mode 0700) if `create`.

    An empty folder becomes a cache; so nothing that jitd did not make is ever cleared. A marked
    folder may be read-only. Raises CacheFolderError for a folder that is missing (without
    `create`), not the user's or root's, writable by others, reached through somebody else's link,
    not empty and not marked, or of another layout.
    """
    given = Path(path).absolute()
    try:
        _refuse_planted_links(given)
        if create:
            _make_folders(given)
        root = given.resolve(strict=True)
        _refuse_unsafe(root)
        if _is_marked(root):
            return root
        if not create:
            raise _refused(root, f"it has no {MARKER} file", "Name a folder that jitd made.")
        _refuse_occupied(root)
        _write_new(root / MARKER, _MARKER_TEXT)
        _write_new(root / TAG, _TAG_TEXT)
    except OSError as error:
        remedy = "Name a folder that you can write."
        if not create:
            remedy = "Name one that you can read; another user's: run chmod -R go=rX there, as it."
        raise _refused(given, f"{error.strerror}: {error.filename}", remedy) from error
    return root


def is_network_filesystem(
    path: str | os.PathLike[str], *, mounts: str | os.PathLike[str] = "/proc/self/mounts"
) -> str | None:
    """The type of the network file system that holds `path` ("nfs4"), or None for a local one.

    Also None where the system has no table of `mounts` to ask.
    """
    table = Path(mounts)
    if not table.exists():
        return None
    resolved = Path(path).resolve()
    depth, found = -1, ""
    for line in table.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        _, mount_point, filesystem, *_ = line.split(" ")
        folder = Path(_unescaped(mount_point))
        # >=: of two mounts on one folder, the later hides the earlier.
        if resolved.is_relative_to(folder) and len(folder.parts) >= depth:
            depth, found = len(folder.parts), filesystem
    return found if found in _NETWORK_FILESYSTEMS else None


def _refused(path: Path, reason: str, remedy: str) -> CacheFolderError:
    return CacheFolderError(
        f"cache folder refused: {path}: {reason}. A cache belongs to the user or to root, is "
        f"writable by its owner alone and holds only what jitd put there. {remedy}"
    )


def _is_trusted(owner: int) -> bool:
    return owner in (os.geteuid(), 0)


def _refuse_planted_links(path: Path) -> None:
    """Refuse links that somebody else owns: they could lead anywhere, tomorrow elsewhere."""
    for step in (path, *path.parents):
        if step.is_symlink() and not _is_trusted(owner := step.lstat().st_uid):
            reason = f"{step} is a link owned by uid {owner}"
            raise _refused(path, reason, "Name the folder itself.")


def _make_folders(path: Path) -> None:
    missing = [step for step in (path, *path.parents) if not os.path.lexists(step)]
    for step in reversed(missing):
        try:
            step.mkdir(mode=0o700)
        except FileExistsError:
            continue  # another process makes the same cache; what it made is checked below
        step.chmod(0o700)  # whatever the umask took away


def _refuse_unsafe(root: Path) -> None:
    status = root.stat()
    if not stat.S_ISDIR(status.st_mode):
        raise _refused(root, "it is not a folder", "Name a folder.")
    if not _is_trusted(status.st_uid):
        raise _refused(root, f"it is owned by uid {status.st_uid}", "Name a folder of your own.")
    if status.st_mode & 0o022:
        reason = f"others may write it (mode {stat.S_IMODE(status.st_mode):04o})"
        raise _refused(root, reason, f"Check what is in it, then run: chmod go-w {root}")
    for above in root.parents:
        mode = stat.S_IMODE(above.stat().st_mode)
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            reason = f"anybody may replace it (mode {mode:04o} of {above})"
            raise _refused(root, reason, f"Run: chmod o-w {above}")


def _is_marked(root: Path) -> bool:
    marker = root / MARKER
    try:
        status = marker.lstat()
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(status.st_mode) or not _is_trusted(status.st_uid):
        raise _refused(root, f"{MARKER} is not a file of the user's", "Name another folder.")
    with marker.open("rb") as file:
        text = file.read(100)
    if text != _MARKER_TEXT.encode():
        reason = f"{MARKER} says {text!r}, not {_MARKER_TEXT!r}"
        raise _refused(root, reason, "It is another jitd's: name another folder.")
    return True


def _refuse_occupied(root: Path) -> None:
    # A marker in the making (of another process that opens the same new folder) does not count.
    foreign = sorted(
        entry.name for entry in root.iterdir() if not entry.name.startswith((MARKER, TAG))
    )
    if foreign:
        reason = f"it is not empty and has no {MARKER} file (it holds {foreign[0]!r})"
        raise _refused(root, reason, "Name a new or an empty folder.")


def _write_new(path: Path, text: str) -> None:
    """Write a file that appears whole: a process that opens the folder now sees all or none."""
    temporary = path.with_name(f"{path.name}.{os.urandom(8).hex()}")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _unescaped(mount_point: str) -> str:
    """A path of the mount table, in which blanks are written as octal numbers."""
    for code, character in ((r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\")):
        mount_point = mount_point.replace(code, character)
    return mount_point
