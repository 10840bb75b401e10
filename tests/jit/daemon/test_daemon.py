"""The daemon: real processes, sockets and locks; what a worker would build is a script."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request

import pytest
from jitd.cache.keys import Key
from jitd.jit.daemon import protocol
from jitd.jit.daemon.client import DaemonTrouble

from .conftest import build, told, until


def test_a_build_is_answered(machine):
    """A request is built by a worker, published in the store, and its client told the config."""
    machine.start()
    client = machine.client()
    news = told(client, client.build(build()))
    assert (news.state, news.signature, news.detail) == ("done", "good[bf16](1)", "the best")
    assert machine.winners() == ["good[bf16](1)"]
    status = client.ask(protocol.Status())
    assert (status["queued"], status["running"], status["counts"]["done"]) == (0, 0, 1)
    assert status["recent"][0]["signature"] == "good[bf16](1)"


def test_a_failure_is_answered_with_its_cause(machine):
    """A build that cannot be had fails by name, and the next one is built all the same."""
    machine.start()
    client = machine.client()
    bad, good = client.build(build("fail")), client.build(build("good"))
    assert (told(client, bad).cause, told(client, good).state) == ("tune_failed", "done")


def test_the_server_imports_no_torch(machine):
    """Neither torch nor Triton is mapped into the server's process, which stays small."""
    pid = machine.start()
    client = machine.client()
    told(client, client.build(build()))
    mapped = (machine.place.folder.parent.__class__(f"/proc/{pid}/maps")).read_text()
    assert "libtorch" not in mapped and "libtriton" not in mapped
    assert client.ask(protocol.Status())["resident_bytes"] < 64 << 20


def test_eight_clients_build_each_key_once(machine):
    """Eight clients that ask for the same fifty keys at once get each of them built once."""
    machine.start()
    numbers, wrong = range(50), []
    begin = threading.Barrier(8)

    def work(first):
        try:
            client = machine.client()
            begin.wait(30)
            order = [*numbers[first:], *numbers[:first]]
            keys = [client.build(build("good", number)) for number in order]
            wrong.extend(news for key in keys if (news := told(client, key)).state != "done")
        except Exception as error:  # noqa: BLE001  (it must reach the test)
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert wrong == []
    assert sorted(machine.begun()) == sorted(f"good[bf16]({n + 1})" for n in numbers)


def test_who_waits_comes_first(machine):
    """A build that somebody stands still for is begun before those that run on without, and these
    before a warmup."""
    machine.close_gate()
    machine.start()
    client, other = machine.client(), machine.client()
    first = client.build(build("good", 0))
    until(machine.begun, "the first is under way")
    facts = client.ask(protocol.Warmup(["good[bf16](31)"], ["nowhere"], "card", "sm_90"))
    later = client.build(build("good", 1))
    urgent = other.build(build("good", 2, waiting=True))
    machine.open_gate()
    assert told(other, urgent).state == "done"
    for key in (first, later, *facts["keys"]):
        assert told(client, key).state == "done"
    assert machine.begun() == [f"good[bf16]({n})" for n in (1, 3, 2, 31)]


def test_clients_share_a_card_fairly(machine):
    """Who asks for one thing does not wait for all of somebody else's forty."""
    machine.close_gate()
    machine.start()
    greedy, modest = machine.client(), machine.client()
    keys = [greedy.build(build("good", n)) for n in range(40)]
    mine = modest.build(build("good", 99))
    machine.open_gate()
    assert told(modest, mine).state == "done"
    for key in keys:
        told(greedy, key)
    assert machine.begun().index("good[bf16](100)") <= 2


def test_cards_do_not_wait_for_one_another(machine):
    """While one card's build hangs, another's is built."""
    machine.start()
    client = machine.client()
    client.build(build("hang", device="one"))
    assert told(client, client.build(build("good", device="two"))).state == "done"
    assert client.ask(protocol.Status())["running"] == 1


def test_a_crash_of_a_worker_costs_one_try(machine):
    """A worker that dies is replaced and the build begun again; one that dies of it twice fails it,
    and others are built."""
    machine.start()
    client = machine.client()
    assert told(client, client.build(build("crash"))).state == "done"
    assert told(client, client.build(build("die"))).cause == "worker_died"
    assert told(client, client.build(build("nonsense"))).cause == "worker_died"
    assert told(client, client.build(build("good"))).state == "done"
    assert machine.begun().count("die[bf16](1)") == 2


def test_an_odd_answer_keeps_nobody_waiting(machine):
    """An answer of a worker that nobody expected fails its build by name; others are built."""
    machine.start()
    client = machine.client()
    assert told(client, client.build(build("odd"))).cause == "daemon_error"
    assert told(client, client.build(build("good"))).state == "done"


def test_a_changed_module_is_imported_anew(machine):
    """A worker that has another code than the client is replaced by one that imports it afresh."""
    machine.start()
    client = machine.client()
    assert told(client, client.build(build("changed"))).state == "done"
    assert len({line.split()[1] for line in machine.log()}) == 2


def test_a_hung_worker_is_killed(machine, monkeypatch):
    """A worker that says nothing for longer than a compile may take is replaced."""
    monkeypatch.setenv("JITD_COMPILE_TIMEOUT_S", "1")
    monkeypatch.setenv("SCRIPT_SILENCE_S", "0.2")
    machine.start()
    client = machine.client()
    assert told(client, client.build(build("hang"))).cause == "worker_died"
    assert told(client, client.build(build("good"))).state == "done"


def test_a_busy_card_is_tuned_part_of_the_time(machine):
    """On a card that another process uses a build has a duty; without free memory it is put off,
    and whoever waits is told so at once."""
    (machine.script / "card").write_text(f"{40 << 30} 0.9 1")
    machine.start()
    client = machine.client()
    told(client, client.build(build("good", 1)))
    assert machine.log()[-1].split()[2] == "0.03"
    # The one process that computes there stands still for this build: it need not be spared.
    (machine.script / "card").write_text(f"{40 << 30} 0.0 {os.getpid()}")
    told(client, client.build(build("good", 2, waiting=True)))
    assert machine.log()[-1].split()[2] == "1.0"
    (machine.script / "card").write_text(f"{1 << 30} 0.9 1")
    assert told(client, client.build(build("good", 3, waiting=True))).cause == "no_memory"
    put_off = client.build(build("good", 4))
    news = client.news()
    assert (news.key, news.state, news.cause) == (put_off, "queued", "no_memory")
    assert machine.begun()[-1] == "good[bf16](3)"


def test_idle_daemons_end(machine):
    """Without work for ten minutes it ends, by the clock; looking at it is no work; with work it
    stays."""
    machine.close_gate()
    pid = machine.start()
    client = machine.client()
    key = client.build(build())
    machine.ahead(1000)
    until(lambda: client.ask(protocol.Status())["uptime_seconds"] > 900, "its clock is ahead")
    machine.open_gate()
    told(client, key)
    assert machine.is_alive(pid)
    client.ask(protocol.Status())
    machine.ahead(1000 + 1200)
    until(lambda: not machine.is_alive(pid), "it ended")
    assert not machine.place.socket.exists()
    assert '"why": "idle"' in machine.place.log.read_text()


def test_idle_never(machine, monkeypatch):
    """With JITD_DAEMON_IDLE_S=0 it stays."""
    monkeypatch.setenv("JITD_DAEMON_IDLE_S", "0")
    pid = machine.start()
    machine.ahead(1e6)
    client = machine.client()
    until(lambda: client.ask(protocol.Status())["uptime_seconds"] > 1e5, "its clock is ahead")
    until(lambda: client.ask(protocol.Status())["idle_seconds"] > 1e5, "it is idle")
    assert machine.is_alive(pid)


def test_the_cache_is_tidied_every_hour(machine, monkeypatch):
    """An hour on, by its clock, the daemon evicts what the cache may not hold, least used first,
    and winners last."""
    monkeypatch.setenv("JITD_DAEMON_IDLE_S", "0")
    monkeypatch.setenv("JITD_CACHE_MAX_FILES", "10")
    for number in range(40):
        machine.store.put(Key.of("artifact", "old", number=number), {"cubin": b"x"})
    machine.start()
    client = machine.client()
    told(client, client.build(build()))
    assert len(list(machine.store.headers("artifact"))) == 40
    machine.ahead(3700)
    until(lambda: '"tidied"' in machine.place.log.read_text(), "it has tidied")
    assert len(list(machine.store.headers())) <= 10
    assert machine.winners() == ["good[bf16](1)"]


def test_sigterm_drains(machine):
    """SIGTERM lets the build under way finish, fails the queued ones by name, and removes the
    socket."""
    machine.close_gate()
    pid = machine.start()
    client = machine.client()
    first, second = client.build(build("good", 0)), client.build(build("good", 1))
    until(machine.begun, "the first is under way")
    os.kill(pid, signal.SIGTERM)
    assert told(client, second).cause == "daemon_stopped"
    machine.open_gate()
    assert told(client, first).state == "done"
    until(lambda: not machine.is_alive(pid), "it ended")
    assert not machine.place.socket.exists()
    assert machine.winners() == ["good[bf16](1)"]


def test_wait_cancel_reload_and_stats(machine):
    """Another client can wait for a build, a client can take back its own, and workers are started
    afresh on request."""
    machine.close_gate()
    machine.start()
    client, other = machine.client(), machine.client()
    first, second = client.build(build("good", 0)), client.build(build("good", 1))
    until(machine.begun, "the first is under way")
    other.wait(first)
    assert client.ask(protocol.Cancel(second)) == {"cancelled": True}
    assert other.ask(protocol.Cancel(first)) == {"cancelled": True}
    other.wait(first)
    machine.open_gate()
    assert told(other, first).state == "done" and told(client, first).state == "done"
    assert machine.begun() == ["good[bf16](1)"]
    with pytest.raises(DaemonTrouble, match="no such build"):
        other.wait(first)
    assert other.ask(protocol.Reload()) == {"reloaded": True}
    told(other, other.build(build("good", 2)))
    assert len({line.split()[1] for line in machine.log()}) == 2
    assert client.ask(protocol.Stats())["done"] == 2


def test_a_subscriber_sees_everything(machine):
    """A client that subscribed is told of builds that others asked for."""
    machine.start()
    watcher, client = machine.client(), machine.client()
    watcher.ask(protocol.Subscribe())
    key = client.build(build())
    states = []
    while states[-1:] != ["done"]:
        news = watcher.news()
        assert news.key == key
        states.append(news.state)
    assert states == ["running", "progress", "done"]


def test_the_workload_is_warmed_again_after_an_upgrade(machine):
    """What was built under another toolchain is built again by a new daemon, of its own accord."""
    pid = machine.start()
    client = machine.client()
    told(client, client.build(build("good", 0)))
    told(client, client.build(build("fail", 1)))
    machine.kill(pid, signal.SIGTERM)
    until(lambda: not machine.is_alive(pid), "it ended")
    assert machine.begun() == ["good[bf16](1)", "fail[bf16](2)"]
    machine.kill(machine.start(), signal.SIGTERM)
    until(lambda: not machine.is_alive(machine.pid()), "it ended")
    assert len(machine.begun()) == 2  # nothing has changed
    machine.patch.setenv("TRITON_PTXAS_PATH", "/another/ptxas")
    machine.start()
    until(lambda: len(machine.begun()) == 3, "it is built again")
    assert machine.begun()[-1] == "good[bf16](1)"


def test_the_log_is_lines_of_json(machine):
    """Each line of the log is an object with time, level and event; it is private, and names no
    path of a client's modules."""
    pid = machine.start()
    client = machine.client()
    told(client, client.build(build("crash")))
    machine.kill(pid, signal.SIGTERM)
    until(lambda: not machine.is_alive(pid), "it ended")
    text = machine.place.log.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert all({"at", "level", "event"} <= line.keys() for line in lines)
    events = [line["event"] for line in lines]
    assert events[0] == "started" and events[-1] == "stopped"
    assert {"built", "a worker died"} <= set(events)
    assert "site-packages" not in text
    assert machine.place.log.stat().st_mode & 0o777 == 0o600


def test_metrics_in_a_file(machine, monkeypatch):
    """With JITD_DAEMON_METRICS naming a file, it holds Prometheus metrics of what was built."""
    pytest.importorskip("prometheus_client")
    path = machine.script / "jitd.prom"
    monkeypatch.setenv("JITD_DAEMON_METRICS", str(path))
    machine.start()
    client = machine.client()
    told(client, client.build(build()))
    until(lambda: path.exists() and 'event="done"' in path.read_text(), "it is written")
    text = path.read_text()
    assert 'jitd_events_total{event="done"} 1.0' in text
    assert "jitd_queued 0.0" in text


def test_metrics_on_a_port(machine, monkeypatch):
    """With JITD_DAEMON_METRICS naming a port, Prometheus can read it on 127.0.0.1; a port that is
    taken keeps the daemon from starting, with the reason."""
    pytest.importorskip("prometheus_client")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.listen()
        monkeypatch.setenv("JITD_DAEMON_METRICS", str(port))
        with pytest.raises(DaemonTrouble, match=f"no metrics on 127.0.0.1:{port}"):
            machine.connect()
    machine.start()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        text = answer.read().decode()
    assert "jitd_uptime_seconds" in text and "jitd_running 0.0" in text


def test_the_log_is_rotated(machine, monkeypatch):
    """A log that is full is put aside, twice; the third is let go."""
    monkeypatch.setenv("SCRIPT_LOG_BYTES", "600")
    machine.start()
    client = machine.client()
    for number in range(20):
        told(client, client.build(build(number=number)))
    logs = sorted(path.name for path in machine.folder.glob("*.log*"))
    assert logs == [f"{machine.place.name}.log{end}" for end in ("", ".1", ".2")]
    assert all(path.stat().st_size < 1200 for path in machine.folder.glob("*.log*"))


def test_a_daemon_in_the_foreground_says_why_it_cannot_serve(machine):
    """A second one says that another serves the cache and ends well; a folder that others may
    read is refused with the reason."""
    machine.start()
    second = machine.foreground()
    assert b"another daemon serves" in second.communicate(timeout=60)[1]
    assert second.returncode == 0
    machine.folder.chmod(0o755)
    third = machine.foreground()
    assert b"mode 0755" in third.communicate(timeout=60)[1]
    assert third.returncode == 1
    machine.folder.chmod(0o700)


def test_socket_activation(machine):
    """Given a listening socket as systemd gives it, the daemon serves it and leaves its file."""
    machine.place.make()
    listener = machine.place.bind()
    code = (
        "import os, sys\n"
        f"os.dup2({listener.fileno()}, 3); os.environ.update(LISTEN_FDS='1', "
        "LISTEN_PID=str(os.getpid()))\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'scripted_server'])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], pass_fds=[listener.fileno()], stderr=subprocess.DEVNULL
    )
    machine.processes.append(process)
    client = machine.client()  # waits in the socket's queue until it is served
    assert told(client, client.build(build())).state == "done"
    process.terminate()
    assert process.wait(60) == 0
    assert machine.place.socket.exists()
    listener.close()
