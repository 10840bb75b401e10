"""What may go wrong with a daemon: nothing hangs beyond its limit, is built twice, or is lost."""

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jitd.jit.daemon import client as clients
from jitd.jit.daemon import protocol, start
from jitd.jit.daemon.client import Client, DaemonTrouble
from jitd.jit.daemon.place import lock_now, unlock

from .conftest import WAIT_S, build, told, until

MOMENTS = range(10)


def test_nobody_there(machine):
    """Where there is no daemon, that is said at once."""
    with pytest.raises(DaemonTrouble) as caught:
        machine.client()
    assert caught.value.cause == "absent"


def test_connect_or_start(machine):
    """Where there is no daemon one is started, and serves the next one, too."""
    first, second = machine.connect(), machine.connect()
    assert first.welcome.pid == second.welcome.pid == machine.pid()
    assert told(second, second.build(build())).state == "done"


@pytest.mark.parametrize("attempt", range(3))
def test_of_many_starters_one_wins(machine, attempt):
    """Of twelve threads that find no daemon at once all are served, by the same one."""
    begin, pids, wrong = threading.Barrier(12), [], []

    def work():
        try:
            begin.wait(WAIT_S)
            pids.append(machine.connect(timeout_s=WAIT_S).welcome.pid)
        except Exception as error:  # noqa: BLE001  (it must reach the test)
            wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * WAIT_S)
    assert wrong == []
    assert set(pids) == {machine.pid()} and len(pids) == 12
    assert machine.place.log.read_text().count('"started"') == 1


STARTER = """
import sys
from pathlib import Path
from jitd.jit.daemon import start
from jitd.jit.daemon.identity import Identity
from jitd.jit.daemon.place import Place
start.MODULE = "scripted_server"
place = Place.of(Path(sys.argv[1]), Path(sys.argv[2]))
identity = Identity.of(place.cache_dir)
print("ready", flush=True)
sys.stdin.readline()
with start.connect_or_start(place, identity, timeout_s=60) as client:
    print(client.welcome.pid, flush=True)
    sys.stdin.readline()
"""


def race(machine, number):
    """Processes that find no daemon at the same moment: the pids of the daemons they got."""
    arguments = [sys.executable, "-c", STARTER, str(machine.cache_dir), str(machine.folder)]
    processes = [
        subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(number)
    ]
    machine.processes += processes
    assert all(process.stdout.readline() == "ready\n" for process in processes)
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    pids = {int(process.stdout.readline()) for process in processes}
    for process in processes:
        process.communicate("end\n", timeout=WAIT_S)
    return pids


def test_two_processes_that_start_one(machine):
    """Two processes that find no daemon at the same moment get the same one, five times over."""
    for _ in range(5):
        [pid] = race(machine, 2)
        machine.kill(pid)


@pytest.mark.long
def test_two_processes_that_start_one_fifty_times(machine):
    """The same, fifty times."""
    for _ in range(50):
        [pid] = race(machine, 2)
        machine.kill(pid)


def test_a_starter_that_stands_still(machine):
    """While somebody holds the lock of starters and does nothing, others give up in time."""
    machine.place.make()
    lock = lock_now(machine.place.start_lock)
    with pytest.raises(DaemonTrouble, match="somebody else starts one") as caught:
        machine.connect(timeout_s=0.2)
    assert caught.value.cause == "no_start"
    unlock(lock)
    assert machine.connect().welcome.pid == machine.pid()


def test_a_daemon_that_does_not_come_up(machine, monkeypatch):
    """One that ends at once, fails with a reason, or does not exist is reported as that."""
    monkeypatch.setattr(start, "MODULE", "no_such_module")
    with pytest.raises(DaemonTrouble, match="it ended at once"):
        machine.connect()
    monkeypatch.setattr(start, "MODULE", "scripted_server")
    monkeypatch.setenv("JITD_DAEMON_METRICS", "relative")
    with pytest.raises(DaemonTrouble, match="allowed are a port number"):
        machine.connect()


@pytest.mark.parametrize("moment", MOMENTS)
def test_kill_9(machine, moment):
    """A daemon killed at any moment loses nothing that was published; its client learns it at once,
    and gets the rest from the next one, which builds nothing twice."""
    machine.start()
    client = machine.connect()
    keys = [client.build(build(number=number)) for number in range(12)]
    begun = []
    for key in keys[:moment]:
        begun.append(told(client, key).signature)
    machine.kill(machine.pid())
    kept = set(machine.winners())
    assert set(begun) <= kept
    with pytest.raises(DaemonTrouble) as caught:
        while True:
            client.news(WAIT_S)
    assert caught.value.cause == "died"
    again = machine.connect()
    for number in range(12):
        assert told(again, again.build(build(number=number))).state == "done"
    assert kept <= set(machine.winners()) and len(machine.winners()) == 12
    assert all(machine.begun().count(signature) == 1 for signature in kept)


def test_its_workers_end_with_it(machine):
    """No worker outlives a daemon that was killed."""
    machine.close_gate()
    machine.start()
    client = machine.connect()
    client.build(build())
    until(machine.log, "the build is under way")
    worker = int(machine.log()[0].split()[1])
    machine.kill(machine.pid())
    until(lambda: not machine.is_alive(worker), "the worker is gone")


def test_frozen(machine, monkeypatch):
    """A daemon that is stopped costs whoever connects one bounded wait, and whoever waits another;
    when it goes on it serves."""
    monkeypatch.setattr(clients, "HELLO_S", 0.3)
    pid = machine.start()
    client = machine.client()
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    for _ in range(2):
        with pytest.raises(DaemonTrouble) as caught:
            machine.connect()
        assert caught.value.cause == "hung"
    with pytest.raises(DaemonTrouble) as caught:
        client.news(0.3)
    assert caught.value.cause == "hung" and client.closed
    assert time.monotonic() - began < WAIT_S
    os.kill(pid, signal.SIGCONT)
    fresh = Client(machine.place, machine.identity)
    assert told(fresh, fresh.build(build())).state == "done"
    assert machine.pid() == pid


def test_the_socket_is_deleted(machine):
    """A daemon whose socket was deleted binds it anew; whoever comes meanwhile gets this one."""
    pid = machine.start()
    machine.place.socket.unlink()
    assert machine.connect().welcome.pid == pid


def test_the_socket_is_stolen(machine, monkeypatch):
    """A process that puts its own socket there is not waited for long, and does not keep the
    place."""
    monkeypatch.setattr(clients, "HELLO_S", 0.3)
    pid = machine.start()
    os.kill(pid, signal.SIGSTOP)
    thief = machine.place.bind()  # takes connections and says nothing
    with pytest.raises(DaemonTrouble) as caught:
        machine.connect()
    assert caught.value.cause == "hung"
    os.kill(pid, signal.SIGCONT)

    def ours():
        try:
            return Client(machine.place, machine.identity).welcome.pid == pid
        except DaemonTrouble:
            return False

    until(ours, "the daemon has its place again")
    thief.close()


@pytest.mark.parametrize(
    "answer",
    [b"\xff" * 64, b"HTTP/1.1 200 OK\r\n\r\n", b"\0\0\0\4null", b"\0\0\0\1\x80", b"", b"\0\0"],
    ids=["large", "http", "text", "empty map", "closes", "cut short"],
)
def test_nonsense_for_an_answer(machine, answer):
    """Whatever listens there and answers, the client ends with one error of the right cause."""
    machine.place.make()
    listener = machine.place.bind()
    listener.setblocking(True)

    def serve():
        link, _ = listener.accept()
        link.recv(1 << 16)
        link.sendall(answer)
        link.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    with pytest.raises(DaemonTrouble) as caught:
        machine.client()
    assert caught.value.cause in ("nonsense", "died")
    thread.join(WAIT_S)
    listener.close()


def test_stale_files(machine):
    """A socket, a lock file and a pid that a killed daemon left do not keep the next one out."""
    machine.kill(machine.start())
    assert machine.place.socket.exists() and machine.place.lock.read_text()
    client = machine.connect()
    assert client.welcome.pid == machine.pid()
    assert told(client, client.build(build())).state == "done"


def test_another_version(machine):
    """A client of another version, code, toolchain or protocol is refused by name, and the daemon
    serves on."""
    machine.start()
    from dataclasses import replace  # noqa: PLC0415

    for name in ("version", "code", "toolchain"):
        with pytest.raises(DaemonTrouble, match=name) as caught:
            Client(machine.place, replace(machine.identity, **{name: "another"}))
        assert caught.value.cause == "mismatch"
    link = raw(machine)
    link.sendall(protocol.encode(replace(machine.identity.hello(), protocol=99)))
    assert b"protocol 99" in link.recv(4096)
    assert machine.client().welcome.pid == machine.pid()


def test_a_daemon_of_before_an_upgrade_makes_way(machine, monkeypatch):
    """When jitd was changed under it, the daemon ends as soon as a client of the new code comes."""
    monkeypatch.setenv("TRITON_PTXAS_PATH", str(machine.script / "ptxas"))
    (machine.script / "ptxas").write_text("old")
    identity = type(machine.identity).of(machine.place.cache_dir)
    pid = machine.start()
    Client(machine.place, identity).close()
    (machine.script / "ptxas").write_text("newer")
    with pytest.raises(DaemonTrouble) as caught:
        Client(machine.place, type(identity).of(machine.place.cache_dir))
    assert caught.value.cause == "mismatch"
    until(lambda: not machine.is_alive(pid), "the old one made way")


def raw(machine):
    link = socket.socket(socket.AF_UNIX)
    link.settimeout(WAIT_S)
    link.connect(str(machine.place.socket))
    return link


@pytest.mark.parametrize(
    "data",
    [b"\xff" * 100, b"\0\0\0\0", b"\0\0\0\2\xc1\xc1", b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\1\x80"],
    ids=["long", "none", "no msgpack", "http", "empty map"],
)
@pytest.mark.parametrize("greeted", [False, True])
def test_garbage_costs_a_client_its_connection(machine, data, greeted):
    """Garbage, before or after the greeting, is answered by a refusal and the end of that one
    connection; others are served."""
    machine.start()
    link = raw(machine)
    if greeted:
        link.sendall(protocol.encode(machine.identity.hello()))
        assert b"welcome" in link.recv(4096)
    link.sendall(data)
    said = b""
    while chunk := link.recv(4096):
        said += chunk
    assert b"refused" in said
    client = machine.client()
    assert told(client, client.build(build())).state == "done"


def test_a_client_killed_while_it_waits(machine):
    """What it asked for is built all the same, once, and the next who asks has it at once."""
    machine.close_gate()
    machine.start()
    arguments = [str(machine.cache_dir), str(machine.folder)]
    code = (
        "import sys\nfrom pathlib import Path\n"
        "sys.path.insert(0, sys.argv[3])\n"
        "from conftest import build\n"
        "from jitd.jit.daemon.client import Client\n"
        "from jitd.jit.daemon.identity import Identity\n"
        "from jitd.jit.daemon.place import Place\n"
        "place = Place.of(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "client = Client(place, Identity.of(place.cache_dir))\n"
        "client.build(build(waiting=True))\n"
        "while True: client.news(60)\n"
    )
    here = str(machine.place.folder.__class__(__file__).parent)
    process = subprocess.Popen([sys.executable, "-c", code, *arguments, here])
    machine.processes.append(process)
    until(machine.begun, "the build is under way")
    process.kill()
    process.wait(WAIT_S)
    machine.open_gate()
    until(machine.winners, "it is built")
    client = machine.client()
    assert told(client, client.build(build())).state == "done"
    assert machine.begun() == ["good[bf16](1)"]


def test_a_thousand_connections(machine):
    """A thousand clients may be connected at once; one more is still served quickly."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    try:
        machine.start()
        hello = protocol.encode(machine.identity.hello())
        links = []
        for _ in range(1000):
            links.append(raw(machine))
            links[-1].sendall(hello)
        for link in links:
            assert b"welcome" in link.recv(4096)
        client = machine.client()
        assert client.ask(protocol.Status())["connections"] == 1001
        assert told(client, client.build(build())).state == "done"
        for link in links:
            link.close()
        until(lambda: client.ask(protocol.Status())["connections"] == 1, "they are gone")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_client_that_forks(machine):
    """A child of a connected client has neither its connection nor its locks: it makes its own, and
    the parent's goes on; the locks of a parent that is gone are free."""
    machine.close_gate()
    machine.start()
    client = machine.client()
    key = client.build(build())
    lock = lock_now(machine.folder / "some.lock")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            own = Client(machine.place, machine.identity)
            right = client.closed and own.ask(protocol.Status())["connections"] == 2
            os.write(writing, b"y" if right else b"n")
            os.read(reading, 0)
            signal.pause()
        finally:
            os._exit(1)
    assert os.read(reading, 1) == b"y"
    unlock(lock)
    again = lock_now(machine.folder / "some.lock")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert again is not None
    unlock(again)
    machine.open_gate()
    assert told(client, key).state == "done"


def test_a_full_disk(machine):
    """A daemon that can write no byte to any file starts, fails what it cannot store by name, and
    goes on to answer; it can be stopped."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))  # inherited; every write fails
    try:
        machine.place.make()
        pid = start.spawn(machine.place, WAIT_S)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    client = machine.client()
    assert told(client, client.build(build())).cause == "worker_died"
    assert client.ask(protocol.Status())["pid"] == pid
    client.ask(protocol.Shutdown())
    until(lambda: not machine.is_alive(pid), "it ended")


def test_a_folder_that_others_can_write(machine):
    """A folder that is not the user's alone is refused, by client and starter, with the reason."""
    machine.place.make()
    machine.folder.chmod(0o777)
    with pytest.raises(DaemonTrouble, match="mode 0777") as caught:
        machine.connect()
    assert caught.value.cause == "refused"
    machine.folder.chmod(0o700)


def test_news_that_come_with_an_answer(machine):
    """What arrives in one piece with the answer to a request is known to be there: nobody waits for
    the socket to bring it."""
    machine.place.make()
    listener = machine.place.bind()
    listener.setblocking(True)
    news = protocol.News("key", "good[bf16](1)", "done")

    def serve():
        link, _ = listener.accept()
        link.recv(1 << 16)
        link.sendall(protocol.encode(protocol.Welcome(1, "0")))
        link.recv(1 << 16)
        link.sendall(protocol.encode(protocol.Accepted("key")) + protocol.encode(news))
        link.recv(1)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    client = machine.client()
    client.build(build())
    assert client.has_news and client.news(0.0) == news and not client.has_news
    client.close()
    thread.join(WAIT_S)
    listener.close()


def test_another_user_is_not_served(machine):
    """A process of another user that gets as far as the socket is let go without an answer, and a
    client does not talk to a socket that another user serves."""
    if os.geteuid() != 0:
        pytest.skip("only root can be another user")
    machine.start()
    machine.folder.chmod(0o711)
    machine.place.socket.chmod(0o666)
    code = (
        "import os, socket, sys\n"
        "os.chdir(sys.argv[1]); os.setgid(65534); os.setuid(65534)\n"
        "link = socket.socket(socket.AF_UNIX); link.connect(sys.argv[2])\n"
        "link.sendall(bytes.fromhex(sys.argv[3])); print(link.recv(100))"
    )
    hello = protocol.encode(machine.identity.hello()).hex()
    done = subprocess.run(
        [sys.executable, "-c", code, str(machine.folder), machine.place.socket.name, hello],
        capture_output=True, text=True, timeout=WAIT_S, check=False,
    )  # fmt: skip
    closed = ("ConnectionReset", "BrokenPipe")  # or the end of the stream, by who is first
    assert done.stdout == "b''\n" or any(word in done.stderr for word in closed), done
    machine.folder.chmod(0o700)
    client = machine.client()
    assert client.ask(protocol.Stats())["refused:uid"] == 1
    client.ask(protocol.Shutdown())
    until(lambda: not machine.place.socket.exists(), "it ended")
    thief = (
        "import os, socket, sys, time\n"
        "listener = socket.socket(socket.AF_UNIX); os.chdir(sys.argv[1])\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "listener.bind(sys.argv[2]); listener.listen()\n"
        "print('listens', flush=True); time.sleep(600)"
    )
    machine.folder.chmod(0o777)
    process = subprocess.Popen(
        [sys.executable, "-c", thief, str(machine.folder), machine.place.socket.name],
        stdout=subprocess.PIPE,
    )
    machine.processes.append(process)
    assert process.stdout.readline() == b"listens\n"
    machine.folder.chmod(0o700)
    with pytest.raises(DaemonTrouble, match="served by uid 65534"):
        machine.client()


REQUESTS = st.sampled_from(
    [
        protocol.Status(),
        protocol.Wait("nothing"),
        protocol.Cancel("nothing"),
        protocol.Warmup(["good[bf16](1)"], [], "card", "sm_90"),
        protocol.Warmup([""], [""], "", ""),
        protocol.Build("", "", "", "", "", "", True),
        protocol.Hello(1, "", "", "", ""),
    ]
).map(protocol.encode)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    greeted=st.booleans(),
    pieces=st.lists(st.one_of(st.binary(max_size=40), REQUESTS), max_size=6),
    cut=st.integers(0, 200),
)
def test_a_live_daemon_survives_any_bytes(machine, greeted, pieces, cut):
    """Whatever is sent, whole, cut short or out of order, the daemon goes on to answer others."""
    if not machine.clients:
        machine.start()
        machine.client()
    with raw(machine) as link:
        data = b"".join(pieces)[:cut] if cut < 100 else b"".join(pieces)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            link.sendall(protocol.encode(machine.identity.hello()) * greeted + data)
    assert machine.clients[0].ask(protocol.Status())["healthy"]
