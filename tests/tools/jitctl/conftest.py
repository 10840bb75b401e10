"""The real command line in a process of its own, on a cache of the test's own."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from jitd.cache.keys import Key
from jitd.cache.paths import open_root
from jitd.cache.records import Header
from jitd.cache.store import Store

WAIT_S = 120.0
OUTSIDE = Path(__file__).parents[2] / "jit"  # holds the package `outside`, which is not jitd's


@dataclass(frozen=True)
class Result:
    """How one command line ended. `imported` only if that was asked for."""

    code: int
    out: str
    err: str
    imported: frozenset[str]

    @property
    def lines(self) -> list[str]:
        """What it said on stderr."""
        return self.err.splitlines()


class Cli:
    """Runs `jitctl`, by `program`, on the cache in `folder`, with `path` to import from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = [str(OUTSIDE)]
        self.program = ["-m", "jitd.tools.jitctl"]

    def environment(self, changes: dict[str, str]) -> dict[str, str]:
        path = os.pathsep.join([*self.path, os.environ.get("PYTHONPATH", "")])
        own = {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "100"}
        return {**os.environ, "JITD_CACHE_DIR": str(self.folder), **own, **changes}

    def run(
        self,
        *arguments: str,
        imports: bool = False,
        env: dict[str, str] | None = None,
        **more: Any,
    ) -> Result:
        flags = ["-X", "importtime"] if imports else []
        done = subprocess.run(
            [sys.executable, *flags, *self.program, *arguments],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            env=self.environment(env or {}),
            **more,
        )
        found = re.findall(r"^import time:.*\| +(\S+)$", done.stderr, re.MULTILINE)
        return Result(done.returncode, done.stdout, done.stderr, frozenset(found))

    def start(self, *arguments: str, stdout: Any = subprocess.PIPE) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *self.program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment({}),
        )

    def refused(self, *arguments: str, code: int, **options: Any) -> str:
        """The one line on stderr of a command that must fail, without a traceback."""
        result = self.run(*arguments, **options)
        assert result.code == code, result
        assert len(result.lines) == 1, result.err
        assert result.err.startswith("jitctl: ")
        return result.err

    def files(self) -> set[str]:
        """Every file in the cache but locks and markers, relative."""
        found = (path.relative_to(self.folder) for path in self.folder.rglob("*") if path.is_file())
        return {str(path) for path in found if path.parts[0] != "locks" and len(path.parts) > 1}


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path / "cache")


@pytest.fixture
def store(cli: Cli) -> Store:
    return Store(open_root(cli.folder))


@pytest.fixture
def put_winner(store: Store) -> Callable[..., Header]:
    """Puts a winner as a tune does: `put_winner("scale", "scale[bf16](64)", us=2.0)`."""

    def put(op: str, label: str, *, us: float = 10.0, target: str = "sm_90") -> Header:
        timing = {"us": us, "spread": 0.02, "reps": 40, "how": "graph"}
        summary = {
            "config": "plain(BLOCK=64)",
            "us": us,
            "eager_us": 4 * us,
            "floor_us": us / 2,
            "device": "NVIDIA Test",
            "target": target,
        }
        slower = {**timing, "us": 3 * us}
        body = {
            **summary,
            "variant": "plain",
            "params": {"BLOCK": 64},
            "variant_digest": "0" * 32,
            "signature": label,
            "how": "graph",
            "driver": "580.1",
            "check": {
                "ok": True,
                "max_abs_error": 0.0078,
                "eager_max_abs_error": 0.0156,
                "bound": 0.031,
                "differing": 3,
                "truth": "float64",
                "registers": [40],
                "local_bytes": [0],
                "shared_bytes": [1024],
            },
            "outcomes": [
                _outcome("plain(BLOCK=128)", "dropped", "too slow", slower),
                _outcome("plain(BLOCK=64)", "timed", "", timing),
                _outcome("plain(BLOCK=32)", "wrong", "beyond the bound", None),
            ],
            "dropped": [["plain(BLOCK=8)", "too small"], ["plain(BLOCK=16)", "too small"]],
            "stopped_early": False,
        }
        key = Key.of("winner", op, problem=label, device="NVIDIA Test", target=target)
        return store.put(key, body, label=label, meta={**summary, "shape": [64]}).header

    return put


def _outcome(config: str, status: str, reason: str, timing: Any) -> dict[str, Any]:
    fate = {"status": status, "reason": reason, "detail": "", "error": 0.0078}
    return {"config": config, "timing": timing, **fate}


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a tiny file system: `tiny_disk("size=16k")`; skips where that is forbidden."""
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir(mode=0o700)
        command = ["mount", "-t", "tmpfs", "-o", f"mode=0700,{options}", "tmpfs", str(folder)]
        if (
            os.geteuid() != 0
            or subprocess.run(command, check=False, capture_output=True).returncode
        ):
            pytest.skip("needs to mount a tmpfs")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)
