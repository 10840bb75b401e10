"""One cache for all tests here that ask for no cold one, all cores for compiling, child processes.

Tuning costs seconds: a signature that two tests use is tuned once. A test whose point is a cold
cache takes `cold`.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
OUTSIDE = HERE.parent / "jit"  # holds the package `outside`, which is not jitd's
if str(OUTSIDE) not in sys.path:
    sys.path.insert(0, str(OUTSIDE))

import jitd
from jitd.jit import compile as compiling
from jitd.jit import device, runtime
from jitd.jit.build import Builder
from jitd.jit.compile import CompilePool
from jitd.jit.declare import Device
from jitd.jit.runtime import Runtime
from jitd.jit.settings import Settings

WAIT_S = 120.0
CORES = min(32, len(os.sched_getaffinity(0)))


@pytest.fixture(scope="session")
def workers() -> Iterator[CompilePool]:
    """The process's compile workers, as many as there are cores."""
    before = compiling._shared
    with CompilePool(CORES) as pool:
        compiling._shared = pool
        yield pool
        compiling._shared = before


@pytest.fixture(scope="session")
def shared_runtime(workers: CompilePool, tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    """Settings and cache of every test that asks for no others."""
    folder = tmp_path_factory.mktemp("gpu") / "cache"
    return Runtime(Settings.read({}, cache_dir=folder, jobs=CORES))


@pytest.fixture(autouse=True)
def _shared_cache(
    _own_jitd: None, shared_runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    monkeypatch.setattr(runtime, "_current", shared_runtime)
    path = [str(OUTSIDE), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    yield
    import torch  # noqa: PLC0415

    torch.cuda.synchronize()  # a fault belongs to the test that caused it
    torch.cuda.empty_cache()  # children of the next test need memory, too


@pytest.fixture
def card() -> Device:
    """The card that the tests run on."""
    return device.devices()[0]


@pytest.fixture
def builder() -> Builder:
    """The builder of the shared cache."""
    return runtime.current().builder_at(0)


@pytest.fixture
def cold(tmp_path: Path) -> Path:
    """An empty cache, in use from here on."""
    folder = tmp_path / "cold"
    jitd.configure(cache_dir=folder)
    return folder


@pytest.fixture
def two_cards() -> None:
    """Skips on a machine with fewer than two cards."""
    if len(device.devices()) < 2:
        pytest.skip("needs two GPUs")


@pytest.fixture
def much_memory() -> None:
    """Skips where less than 64 GB of the card's memory are free."""
    import torch  # noqa: PLC0415

    if torch.cuda.mem_get_info()[0] < 64 << 30:
        pytest.skip("needs 64 GB of free GPU memory")


@pytest.fixture
def c_compiler() -> None:
    """Skips where there is no C compiler, which Inductor needs (jitd does not)."""
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        pytest.skip("needs a C compiler")


@pytest.fixture
def start() -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Starts `child.py` with a task: `start(folder, mode="strict", signatures=[...])`."""
    running: list[subprocess.Popen[str]] = []

    def begin(
        folder: Path, *, mode: str = "tune", path: str | None = None, jobs: int = CORES, **task: Any
    ) -> "subprocess.Popen[str]":
        own = {"JITD_CACHE_DIR": str(folder), "JITD_MODE": mode, "JITD_JOBS": str(jobs)}
        environment = {**os.environ, **own, **({} if path is None else {"PATH": path})}
        child = subprocess.Popen(
            [sys.executable, str(HERE / "child.py"), json.dumps(task)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        running.append(child)
        return child

    yield begin
    for child in running:
        child.kill()
        child.wait(WAIT_S)


def answer(child: "subprocess.Popen[str]") -> dict[str, Any]:
    """What a child has found, once it has ended."""
    out, err = child.communicate(timeout=WAIT_S)
    assert child.returncode == 0, err[-4000:]
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found
