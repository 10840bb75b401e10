"""Every exception of the cache, and `JitdError`, the base class of the whole project.

All of them can be pickled: they cross process borders with their attributes.
"""

from typing import Final, Literal, get_args

Cause = Literal["magic", "version", "truncated", "length", "checksum", "key", "kind", "decode"]
CAUSES: Final[tuple[Cause, ...]] = get_args(Cause)


class JitdError(Exception):
    """Anything jitd raises on purpose."""


class CacheError(JitdError):
    """The cache could not do what was asked."""


class CacheFolderError(CacheError):
    """A folder was refused as a cache; the message gives the reason and the way out."""


class CacheWriteError(CacheError):
    """A file could not be written: disk full, read-only, no permission.

    Nothing half-written stays. `errno` is the system's number for the failure.
    """

    def __init__(self, message: str, errno: int | None = None) -> None:
        super().__init__(message, errno)
        self.errno = errno

    def __str__(self) -> str:
        return str(self.args[0])


class BadValue(CacheError, ValueError):
    """A key part, a body or a header that cannot be stored: a mistake of the caller."""


class BadRecord(CacheError):
    """Bytes that are not the record they should be. `cause` is one word of `CAUSES`."""

    def __init__(self, cause: Cause, detail: str) -> None:
        super().__init__(cause, detail)
        self.cause: Cause = cause
        self.detail = detail

    def __str__(self) -> str:
        return f"bad record ({self.cause}): {self.detail}"


class BadBundle(CacheError):
    """A bundle was refused, whole: nothing of it was imported. `reason` says why."""

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(str(path), reason)
        self.path = str(path)
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"bundle refused: {self.path}: {self.reason}. Nothing was read from it or written to "
            f"it. Allowed is a regular file that `jitctl export` made, unchanged."
        )


class KeyRefused(CacheError):
    """A file with a key for signatures cannot be used; the message gives the reason."""


class LockTimeout(CacheError):
    """Somebody else kept a lock for longer than the caller wanted to wait."""


class LockUnavailable(CacheError):
    """The folder takes no locks (read-only, or a file system without flock)."""


class LockOrderError(CacheError, RuntimeError):
    """A thread took locks in an order that could deadlock: a mistake in the program."""
