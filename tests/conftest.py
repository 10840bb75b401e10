"""What every test gets, and which tests this machine can run.

A test that needs what the machine lacks is skipped here, with the reason, and nowhere else.
"""

import importlib.util
import os
import signal
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

INTERPRETING = os.environ.get("JITD_INTERPRET") == "1"
if INTERPRETING:  # Triton reads it when a kernel is defined: before anything imports one
    os.environ["TRITON_INTERPRET"] = "1"

from jitd.jit import device, runtime
from jitd.jit.stats import STATS


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also run tests that take minutes")


@cache
def _lacking(marker: str) -> str | None:
    """Why tests with this marker cannot run here, or None."""
    match marker:
        case "gpu":
            return device.why_no_device() or _no_cuda_in_torch()
        case "diffusers":
            return _not_installed("diffusers")
        case "compiler":
            return _not_installed("triton")
        case "interpreter":
            alone = None if INTERPRETING else "runs in a process of its own: tools.check"
            return _not_installed("triton") or alone
    return None


def _not_installed(package: str) -> str | None:
    return None if importlib.util.find_spec(package) else f"{package} is not installed"


def _no_cuda_in_torch() -> str | None:
    import torch  # noqa: PLC0415

    return None if torch.cuda.is_available() else "this build of torch has no CUDA"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        markers = {mark.name for mark in item.iter_markers()}
        reasons = [reason for marker in sorted(markers) if (reason := _lacking(marker))]
        if INTERPRETING and "interpreter" not in markers:
            reasons.append("this process interprets kernels (JITD_INTERPRET=1)")
        if "long" in markers and not config.getoption("--long"):
            reasons.append("takes minutes: --long")
        if reasons:
            item.add_marker(pytest.mark.skip(reason=reasons[0]))


class _Ran:
    """Notices whether any test ran at all."""

    ran = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.ran |= report.when == "call" and not report.skipped

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        # A machine that lacks everything must not look like one where everything passes.
        if os.environ.get("CI") and not self.ran and exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # Started in the background of a shell: children would inherit that they ignore Ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.pluginmanager.register(_Ran())


@pytest.fixture(autouse=True)
def _own_jitd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A cache, settings, tables and counters of the test's own: it sees nothing of another's."""
    for name in [name for name in os.environ if name.startswith("JITD_")]:
        monkeypatch.delenv(name)
    if INTERPRETING:
        monkeypatch.setenv("JITD_INTERPRET", "1")
    monkeypatch.setenv("JITD_CACHE_DIR", str(tmp_path / "jitd-cache"))
    monkeypatch.setenv("JITD_JOBS", "2")
    monkeypatch.setattr(runtime, "_current", None)
    runtime._forget_tables()
    STATS.clear()
    yield
    runtime._forget_tables()
