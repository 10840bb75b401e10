"""`jitctl daemon` and `jitctl top`, with a real daemon, in a real terminal where that matters."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from jitd.tools.jitctl import daemon

from .conftest import WAIT_S

COMMANDS = [command.name for command in daemon.app.registered_commands]


@pytest.fixture(autouse=True)
def place(tmp_path_factory, cli, monkeypatch):
    """A place of the test's own, empty when the test is over."""
    folder = tmp_path_factory.mktemp("d") / "p"
    monkeypatch.setenv("JITD_DAEMON_DIR", str(folder))
    yield folder
    cli.run("daemon", "stop", "--kill")


def pid_of(cli):
    return json.loads(cli.run("daemon", "status", "--json").out)["pid"]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example(cli, name):
    """The help of each command has an example and --json."""
    result = cli.run("daemon", name, "--help")
    assert result.code == 0
    assert (
        f"jitctl daemon {name}"
        in result.out.partition("Examples:")[2] + result.out.partition("Example:")[2]
    )
    assert "--json" in result.out
    assert f"  {name} " in cli.run("daemon", "--help").out


def test_start_status_stop(cli, place):
    """Started, it says so and answers; started again it is the same; stopped, it is gone; and all
    of that can be said to a program."""
    assert cli.run("daemon", "status").code == 1
    started = json.loads(cli.run("daemon", "start", "--json").out)
    again = cli.run("daemon", "start")
    assert f"pid {started['pid']}" in again.out
    status = cli.run("daemon", "status")
    assert status.code == 0 and "0 running, 0 queued" in status.out
    facts = json.loads(cli.run("daemon", "status", "--json").out)
    assert facts["healthy"] and facts["pid"] == started["pid"]
    assert json.loads(cli.run("daemon", "stop", "--json").out) == {"stopped": started["pid"]}
    assert "No daemon runs" in cli.run("daemon", "stop").out
    assert sorted(path.suffix for path in place.iterdir()) == [".lock", ".log", ".start"]


def test_restart(cli):
    """A restarted daemon is another process; where none ran, restart starts one."""
    cli.run("daemon", "restart")
    first = pid_of(cli)
    assert cli.run("daemon", "restart").code == 0
    assert pid_of(cli) != first


def test_a_hung_daemon_is_reported_and_can_be_killed(cli):
    """One that does not answer is a failure that says what to do, and --kill ends it."""
    cli.run("daemon", "start")
    os.kill(pid_of(cli), signal.SIGSTOP)
    status = cli.run("daemon", "status")
    assert status.code == 1 and "does not answer" in status.out and "daemon logs" in status.out
    assert json.loads(cli.run("daemon", "status", "--json").out)["cause"] == "hung"
    doctor = cli.run("doctor")
    assert "daemon stop --kill" in doctor.out
    assert cli.run("daemon", "stop", "--kill").code == 0
    assert "No daemon runs" in cli.run("daemon", "status").out


def test_logs(cli):
    """The end of the log, as lines or as one document; without a log, one line says so."""
    assert "there is no log yet" in cli.refused("daemon", "logs", code=1)
    cli.run("daemon", "start")
    cli.run("daemon", "stop")
    result = cli.run("daemon", "logs", "-n", "1")
    assert json.loads(result.out)["event"] == "stopped"
    document = json.loads(cli.run("daemon", "logs", "--json").out)
    assert [line["event"] for line in document["lines"]] == ["started", "stopping", "stopped"]


def test_install(cli, tmp_path):
    """The units are printed or written, are accepted by systemd, and removed again."""
    home = {"XDG_CONFIG_HOME": str(tmp_path / "config")}
    assert "needs --user" in cli.refused("daemon", "install", code=2)
    dry = cli.run("daemon", "install", "--user", "--dry-run", env=home)
    assert "would write" in dry.out and "ListenStream=" in dry.out
    assert not (tmp_path / "config").exists()
    done = cli.run("daemon", "install", "--user", env=home)
    assert "systemctl --user enable --now jitd.socket" in done.out
    units = sorted((tmp_path / "config" / "systemd" / "user").iterdir())
    assert [path.name for path in units] == ["jitd.service", "jitd.socket"]
    assert all(path.read_text() in dry.out for path in units)
    if shutil.which("systemd-analyze"):
        said = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", *map(str, units)],
            capture_output=True, text=True, timeout=WAIT_S, check=False,
        )  # fmt: skip
        assert "jitd." not in said.stderr, said.stderr
    assert cli.run("daemon", "install", "--user", "--remove", env=home).code == 0
    assert not list((tmp_path / "config" / "systemd" / "user").iterdir())


def test_top_without_a_daemon(cli):
    """Without a daemon top ends with one line."""
    assert "nobody listens" in cli.refused("top", code=1)


def test_top_for_programs(cli):
    """In a pipe top shows one look, as text or as JSON."""
    cli.run("daemon", "start")
    once = cli.run("top")
    assert once.code == 0 and "nothing is queued" in once.out
    assert json.loads(cli.run("top", "--json").out)["running"] == 0


class Terminal:
    """A terminal in tmux: `type` into it, and wait until its screen shows something."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.tmux = ["tmux", "-S", str(folder / "t"), "-f", "/dev/null"]
        self.run("new-session", "-d", "-x", "110", "-y", "40", "sh", environment=environment)

    def run(self, *arguments: str, environment: dict[str, str] | None = None) -> str:
        done = subprocess.run(
            [*self.tmux, *arguments], capture_output=True, text=True, timeout=WAIT_S, check=True,
            env=environment,
        )  # fmt: skip
        return done.stdout

    def type(self, text: str, key: str = "Enter") -> None:
        self.run("send-keys", "-l", text) if text else None
        self.run("send-keys", key)

    def shows(self, *texts: str) -> str:
        deadline = time.monotonic() + WAIT_S
        while True:
            screen = self.run("capture-pane", "-p")
            if all(text in screen for text in texts):
                return screen
            assert time.monotonic() < deadline, f"{texts} not on the screen:\n{screen}"
            time.sleep(0.05)


@pytest.fixture
def terminal(tmp_path_factory, cli):
    if not shutil.which("tmux"):
        pytest.skip("tmux is not installed")
    environment = {**cli.environment({"TERM": "screen"})}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    made = Terminal(tmp_path_factory.mktemp("t"), environment)
    yield made
    made.run("kill-server")


def test_the_quick_start_in_a_terminal(terminal, cli):
    """The README's commands for the daemon, typed into a terminal: started, watched live while it
    compiles, stopped; top leaves the screen as it found it."""
    jitctl = f"{sys.executable} -m jitd.tools.jitctl"
    terminal.type(f"{jitctl} daemon start")
    terminal.shows("The daemon runs: pid")
    terminal.type(f"clear; {jitctl} top --every 0.2")
    terminal.shows("jitd pid", "nothing is queued", "nothing was built yet")
    warm(cli)
    screen = terminal.shows("outside_scale[bf16](4096)", "done", "elementwise(BLOCK=1024")
    assert "built 1" in screen and "no worker is up" not in screen
    terminal.type("", "C-c")
    terminal.type("echo back $((40 + 2))")
    assert "jitd pid" not in terminal.shows("back 42")
    terminal.type(f"{jitctl} daemon stop")
    terminal.shows("Stopped pid")


def warm(cli):
    """Have the daemon compile one signature, as a process on another terminal would."""
    code = (
        "from pathlib import Path; import sys\n"
        "from jitd.jit.daemon.client import Client\n"
        "from jitd.jit.daemon.identity import Identity\n"
        "from jitd.jit.daemon.place import Place\n"
        "from jitd.jit.daemon.protocol import Warmup\n"
        "from jitd.jit.settings import Settings\n"
        "place = Place.of(Settings.read().cache_dir, Settings.read().daemon_dir)\n"
        "with Client(place, Identity.of(place.cache_dir)) as client:\n"
        "    client.ask(Warmup(['outside_scale[bf16](4096)'], ['outside.ops'], '', 'sm_90', "
        "sys.path[1:]))\n"
        "    while (news := client.news(100)) is None or news.state not in ('done', 'failed'):\n"
        "        pass\n"
    )
    subprocess.run(
        [sys.executable, "-c", code], env=cli.environment({}), timeout=WAIT_S, check=True
    )
