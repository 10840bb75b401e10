"""Daemons in processes of their own, on a place and a cache of the test's own."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jitd.cache.paths import open_root
from jitd.cache.store import Store
from jitd.jit.daemon import start
from jitd.jit.daemon.client import Client
from jitd.jit.daemon.identity import Identity
from jitd.jit.daemon.place import Place
from jitd.jit.daemon.protocol import Build, News

HERE = Path(__file__).parent
WAIT_S = 60.0


def until(true: Callable[[], object], what: str) -> None:
    """Wait for something that another process does, and fail if it does not."""
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline, f"not in {WAIT_S:g} s: {what}"
        time.sleep(0.005)


def build(
    op: str = "good", number: int = 0, *, device: str = "card", waiting: bool = False
) -> Build:
    """A request that the scripted worker understands."""
    signature = f"{op}[bf16]({number + 1})"
    return Build(op, "nowhere", "digest", signature, device, "sm_90", waiting, {"x": {"scalar": 1}})


class Machine:
    """One place, and the daemons and clients on it."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder / "m"
        self.script = folder / "s"
        self.script.mkdir()
        self.cache_dir = open_root(folder / "jitd-cache")
        self.place = Place.of(self.cache_dir, self.folder)
        self.identity = Identity.of(self.place.cache_dir)
        self.store = Store(self.cache_dir)
        self.clients: list[Client] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        path = [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
        patch.setattr(sys, "path", [*sys.path, str(HERE), str(HERE.parent)])
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))
        patch.setenv("JITD_DAEMON_DIR", str(self.folder))
        patch.setenv("JITD_CACHE_DIR", str(self.cache_dir))
        patch.setenv("SCRIPT_FOLDER", str(self.script))
        patch.setenv("SCRIPT_CLOCK", str(self.script / "clock"))
        patch.setenv("SCRIPT_CARD", str(self.script / "card"))
        patch.setenv("SCRIPT_LOG", str(self.script / "tuner-log"))
        patch.setattr(start, "MODULE", "scripted_server")
        self.patch = patch

    # -- daemons ------------------------------------------------------------------------------

    def start(self) -> int:
        """A daemon that answers: its pid."""
        self.place.make()
        pid = start.spawn(self.place, WAIT_S)
        assert pid is not None
        return pid

    def foreground(self) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(
            [sys.executable, "-m", "scripted_server"], stderr=subprocess.PIPE, cwd="/"
        )
        self.processes.append(process)
        return process

    def pid(self) -> int:
        """Of the daemon that has the lock."""
        text = self.place.lock.read_text() if self.place.lock.exists() else ""
        return int(text or 0)

    def is_alive(self, pid: int) -> bool:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return False
        return state not in "ZX"

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        os.kill(pid, number)
        if number == signal.SIGKILL:
            until(lambda: not self.is_alive(pid), f"{pid} is dead")

    # -- clients ------------------------------------------------------------------------------

    def client(self) -> Client:
        self.clients.append(Client(self.place, self.identity))
        return self.clients[-1]

    def connect(self, **how: object) -> Client:
        self.clients.append(start.connect_or_start(self.place, self.identity, **how))  # type: ignore[arg-type]
        return self.clients[-1]

    # -- the script ---------------------------------------------------------------------------

    def close_gate(self) -> None:
        (self.script / "closed").touch()

    def open_gate(self) -> None:
        (self.script / "closed").unlink(missing_ok=True)

    def ahead(self, seconds: float) -> None:
        """Move the daemon's clock."""
        temporary = self.script / "clock.new"
        temporary.write_text(str(seconds))
        temporary.replace(self.script / "clock")

    def log(self) -> list[str]:
        """The builds that workers began, in order: signature, pid, duty."""
        path = self.script / "log"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if not line.startswith("started")]

    def begun(self) -> list[str]:
        return [line.split()[0] for line in self.log()]

    def winners(self) -> list[str]:
        return [header.label for header in self.store.headers("winner")]

    def end(self) -> None:
        self.open_gate()
        for client in self.clients:
            client.close()
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.communicate()
        pid = self.pid()
        if pid and self.is_alive(pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
                os.kill(pid, signal.SIGKILL)
            until(lambda: not self.is_alive(pid), "the daemon is gone")


def told(client: Client, key: str) -> News:
    """The last news of a build; that of others is kept for when it is asked for."""
    known = vars(client).setdefault("told", {})
    while key not in known:
        news = client.news(WAIT_S)
        if news is not None and news.state in ("done", "failed"):
            known[news.key] = news
    return known.pop(key)


@pytest.fixture
def machine(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Machine]:
    made = Machine(tmp_path_factory.mktemp("d"), monkeypatch)
    yield made
    made.end()
