"""The real command line in a process of its own, on a cache of the test's own."""

import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from jitd.cache.keys import Key
from jitd.cache.paths import open_root
from jitd.cache.records import Header
from jitd.cache.store import Store
from jitd.jit.stats import STATS

WAIT_S = 120.0
HERE = Path(__file__).parent
OUTSIDE = HERE.parents[1] / "jit"  # holds the package `outside`, which is not jitd's


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


class Card(Cli):
    """`jitctl` on a machine with a card, which is a fake. `happens` is what `with_card.py` knows.

    In this process, since only the first import of torch is slow; `killed` is in one of its own.
    """

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, capture: Any) -> None:
        super().__init__(folder)
        self.program = [str(HERE / "with_card.py")]
        self._patch, self._capture = patch, capture
        patch.syspath_prepend(str(OUTSIDE))
        patch.syspath_prepend(str(HERE))
        patch.setenv("JITD_CACHE_DIR", str(folder))

    def run(self, *arguments: str, happens: Sequence[str] = (), **_: Any) -> Result:
        from with_card import plug_in, run  # noqa: PLC0415  (from HERE)

        plug_in(happens, self.folder, self._patch.setattr)
        self._patch.setattr(logging.getLogger("jitd"), "handlers", [])
        STATS.clear()
        self._capture.readouterr()
        code = run(list(arguments))
        captured = self._capture.readouterr()
        return Result(code, captured.out, captured.err, frozenset())

    def killed(self, *arguments: str) -> None:
        """Run a command that ends with kill -9 while it tunes its second signature."""
        assert super().run("--kill", *arguments).code == -signal.SIGKILL


@pytest.fixture
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Card:
    return Card(tmp_path / "cache", monkeypatch, capsys)


@pytest.fixture
def store(cli: Cli) -> Store:
    return Store(open_root(cli.folder))


@pytest.fixture
def put_winner(store: Store) -> Callable[..., Header]:
    """Puts a winner as a tune does: `put_winner("scale", "scale[bf16](64)", us=2.0, noisy=True)`.

    What is named is so in the body; `without` lacks in body and meta, as in old records.
    """

    def put(
        op: str,
        label: str,
        *,
        us: float = 10.0,
        target: str = "sm_90",
        without: Collection[str] = (),
        **more: Any,
    ) -> Header:
        summary = {
            "config": "plain(BLOCK=64, num_warps=4)",
            "us": us,
            "eager_us": 4 * us,
            "floor_us": us / 2,
            "device": "NVIDIA Test",
            "target": target,
            "driver": "580.1",
            "noisy": False,
        }
        body = {
            **summary,
            "variant": "plain",
            "params": {"BLOCK": 64, "num_warps": 4},
            "digest": "0" * 32,
            "signature": label,
            "tuned_at": label,
            "how": "graph",
            "drift": 0.004,
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
                _outcome({"BLOCK": 32, "num_warps": 4}, status="wrong", reason="beyond the bound"),
                _outcome({"BLOCK": 64, "num_warps": 4}, us=us),
                _outcome({"BLOCK": 64, "num_warps": 8}, us=1.5 * us),
                _outcome(
                    {"BLOCK": 128, "num_warps": 4}, us=3 * us, status="dropped", reason="too slow"
                ),
                _outcome(
                    {"BLOCK": 128, "num_warps": 8}, status="failed", reason="spills", spills=512
                ),
            ],
            "dropped": {
                "too small": [f"plain(BLOCK={n}, num_warps=8)" for n in (8, 16)],
                "no residual": ["fused"],
            },
            "stopped_early": False,
            **more,
        }
        meta = {**{name: body[name] for name in summary}, "shape": [64]}
        for name in without:
            body.pop(name)
            meta.pop(name, None)
        key = Key.of("winner", op, problem=label, device=body.get("device"), target=target)
        return store.put(key, body, label=label, meta=meta).header

    return put


@pytest.fixture
def outcome() -> Callable[..., dict[str, Any]]:
    """What a tune keeps of one config: `outcome({"BLOCK": 64}, us=2.0, variant="plain")`."""
    return _outcome


def _outcome(
    params: Mapping[str, Any], us: float | None = None, variant: str = "plain", **more: Any
) -> dict[str, Any]:
    timing = None if us is None else {"us": us, "spread": 0.02, "reps": 40, "how": "graph"}
    inner = ", ".join(f"{name}={value}" for name, value in params.items())
    return {
        "config": f"{variant}({inner})",
        "variant": variant,
        "params": dict(params),
        "status": "timed",
        "reason": "",
        "detail": "",
        "timing": timing,
        "error": 0.0078 if us else None,
        "registers": [40, 32],
        "spills": 0,
        **more,
    }


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
