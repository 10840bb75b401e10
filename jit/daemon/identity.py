"""Of what code, under which toolchain, for which cache a process works: equal, or no talking."""

from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import code, toolchain
from .protocol import PROTOCOL, Hello


@dataclass(frozen=True)
class Identity:
    """What client and daemon must have in common."""

    version: str
    code: str
    toolchain: str
    cache_dir: str

    @classmethod
    def of(cls, cache_dir: Path) -> "Identity":
        return cls(_version(), code.code_digest(), toolchain.toolchain(), str(cache_dir))

    def hello(self) -> Hello:
        return Hello(PROTOCOL, **vars(self))

    def difference(self, hello: Hello) -> str | None:
        """What differs, in one line; None if nothing does."""
        for name in ("version", "code", "toolchain", "cache_dir"):
            mine, other = getattr(self, name), getattr(hello, name)
            if mine != other:
                return f"{name} {other[:200]!r}, the daemon's is {mine[:200]!r}"
        return None

    def is_outdated(self) -> bool:
        """Whether jitd or Triton on the disk is another than this process began with."""
        code.code_digest.cache_clear()
        toolchain._installed.cache_clear()
        now = Identity.of(Path(self.cache_dir))
        return (now.code, now.toolchain) != (self.code, self.toolchain)

    def facts(self) -> dict[str, Any]:
        return {"version": self.version, "toolchain": self.toolchain, "cache_dir": self.cache_dir}


@cache
def _version() -> str:
    try:
        return metadata.version("jitd")
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "0"
