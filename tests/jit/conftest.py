"""Packages outside jitd, a fake compiler and a fake tuner; store, locks and processes are real."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
if str(HERE) not in sys.path:  # `outside`, `probes` and `fakes`, for tests and for compile workers
    sys.path.insert(0, str(HERE))

from fakes import Machine
from jitd.jit.compile import CompilePool


@pytest.fixture(autouse=True)
def _outside_for_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """Children import what this process can."""
    path = [str(HERE), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine with one card, whose compiler and GPU are fakes."""
    return Machine.plug_in(tmp_path / "machine", monkeypatch.setattr)


@pytest.fixture
def pools() -> Iterator[Callable[..., CompilePool]]:
    """Makes compile pools with real workers, which are gone when the test is."""
    made: list[CompilePool] = []

    def make(jobs: int = 1, timeout_s: float = 120.0) -> CompilePool:
        made.append(CompilePool(jobs, timeout_s=timeout_s))
        return made[-1]

    yield make
    for pool in made:
        pool.close()
