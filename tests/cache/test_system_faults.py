"""The fault table, second part: the system refuses a call, or something happens between two.

A put that fails raises CacheWriteError with the system's number and leaves nothing; a read that
fails is a miss, counted by its cause and logged once; neither leaks a descriptor.
"""

import errno
import itertools
import logging
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jitd.cache.clear import clear_all
from jitd.cache.errors import CacheWriteError
from jitd.cache.keys import Key
from jitd.cache.paths import open_root
from jitd.cache.store import Store

OLD, NEW = {"from": "old"}, {"from": "new"}

WRITE_ERRNOS = [
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EMFILE,
    errno.ENFILE,
    errno.EINTR,
    errno.EIO,
    errno.EACCES,
    errno.ESTALE,
    errno.EBUSY,
]
READ_ERRNOS = [
    errno.EMFILE,
    errno.ENFILE,
    errno.EIO,
    errno.ESTALE,
    errno.ENOENT,
    errno.EACCES,
    errno.EINTR,
    errno.ENOMEM,
]


def name_of(value: object) -> str:
    return errno.errorcode[value] if isinstance(value, int) else str(value)


def failing(
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    number: int,
    *,
    times: int = 1000,
    applies: Callable[..., bool] = lambda *_, **__: True,
    does_it: bool = False,
) -> None:
    """Have `os.<call>` fail with `number`, `times` times, where `applies` to its arguments.

    `does_it`: it does what it was asked, and fails then.
    """
    real, left = getattr(os, call), itertools.count(1)

    def fail(*arguments: Any, **options: Any) -> Any:
        if not applies(*arguments, **options) or next(left) > times:
            return real(*arguments, **options)
        if does_it:
            real(*arguments, **options)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)


def creates(_: object, flags: int, *__: object, **___: object) -> bool:
    return bool(flags & os.O_CREAT)


def opens_folder(_: object, flags: int, *__: object, **___: object) -> bool:
    return bool(flags & os.O_DIRECTORY)


def is_folder(descriptor: int) -> bool:
    return os.path.isdir(f"/proc/self/fd/{descriptor}")  # noqa: PTH112 - no path, a descriptor


def is_file(descriptor: int) -> bool:
    return not is_folder(descriptor)


# What a put asks of the system, in order; the last ones come after the record is in place.
PUT_CALLS: dict[str, dict[str, Any]] = {
    "mkdir": {"call": "mkdir"},
    "open": {"call": "open", "applies": creates},
    "write": {"call": "write"},
    "fsync": {"call": "fsync", "applies": is_file},
    "fstat": {"call": "fstat"},
    "close": {"call": "close", "applies": is_file, "does_it": True},
    "rename": {"call": "replace"},
}
AFTERWARDS: dict[str, dict[str, Any]] = {
    "a rename that was done": {"call": "replace", "does_it": True},
    "open of the folder": {"call": "open", "applies": opens_folder},
    "fsync of the folder": {"call": "fsync", "applies": is_folder},
    "close of the folder": {"call": "close", "applies": is_folder, "does_it": True},
}


def body_of(store: Store, key: Key) -> object:
    record = store.get(key)
    return record and record.body


def files_below(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


@pytest.fixture(autouse=True)
def no_leaked_descriptors() -> Iterator[None]:
    """Every test ends with as many open files as it began with."""
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    yield
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


# -- a put ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", WRITE_ERRNOS, ids=name_of)
@pytest.mark.parametrize("step", PUT_CALLS)
def test_a_put_that_the_system_refuses(
    store: Store, key: Key, monkeypatch: pytest.MonkeyPatch, step: str, number: int
) -> None:
    """The error has the system's number, the old record stays, nothing else does; then it works."""
    if step == "mkdir":
        shutil.rmtree(store.root / "winner", ignore_errors=True)
        before = files_below(store.root)
    else:
        store.put(key, OLD)
        before = files_below(store.root)
    puts = store.counters["puts"]
    with monkeypatch.context() as patch:
        failing(patch, number=number, **PUT_CALLS[step])
        if (step, number) == ("close", errno.EINTR):  # the data was on the disk before
            store.put(key, NEW)
        else:
            with pytest.raises(CacheWriteError) as caught:
                store.put(key, NEW)
            assert caught.value.errno == number
            assert store.counters["puts"] == puts
    assert files_below(store.root) == before
    assert body_of(store, key) in ((None,) if step == "mkdir" else (OLD, NEW))
    store.put(key, NEW)
    assert body_of(store, key) == NEW
    assert [*(store.root / "tmp").iterdir()] == []


@pytest.mark.parametrize("number", WRITE_ERRNOS, ids=name_of)
@pytest.mark.parametrize("step", AFTERWARDS)
def test_a_record_in_place_is_a_success(
    store: Store, key: Key, monkeypatch: pytest.MonkeyPatch, step: str, number: int
) -> None:
    """A rename that reports failure though done, or a folder that cannot be synced, costs nothing.

    An NFS server that lost its answer does the first: the client asks again and hears ENOENT.
    """
    store.put(key, OLD)
    with monkeypatch.context() as patch:
        failing(patch, number=number, **AFTERWARDS[step])
        store.put(key, NEW)
    assert body_of(store, key) == NEW
    assert store.counters == {"puts": 2, "hits": 1}
    assert [*(store.root / "tmp").iterdir()] == []


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ESTALE, errno.EBUSY, errno.EINTR])
@pytest.mark.parametrize("step", ["mkdir", "open", "write", "fsync", "rename"])
def test_a_passing_fault_is_tried_again(
    store: Store, key: Key, monkeypatch: pytest.MonkeyPatch, step: str, number: int
) -> None:
    """What a busy or restarted file server says once or twice does not fail a put."""
    with monkeypatch.context() as patch:
        failing(patch, number=number, times=2, **PUT_CALLS[step])
        store.put(key, NEW)
    assert body_of(store, key) == NEW
    assert [*(store.root / "tmp").iterdir()] == []


def test_a_full_disk_is_not_tried_again(
    store: Store, key: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No space is no passing fault: one attempt, one error."""
    calls: list[int] = []

    def full(*_: object) -> int:
        calls.append(1)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(CacheWriteError):
        store.put(key, NEW)
    assert len(calls) == 1


def test_the_first_failure_is_told(store: Store, key: Key, monkeypatch: pytest.MonkeyPatch) -> None:
    """A temporary file that cannot be removed either hides no cause, and is swept later."""
    with monkeypatch.context() as patch:
        failing(patch, "write", errno.ENOSPC)
        failing(patch, "unlink", errno.EROFS)
        with pytest.raises(CacheWriteError) as caught:
            store.put(key, NEW)
    assert caught.value.errno == errno.ENOSPC
    assert store.sweep_temporaries(-1) == 1
    assert not store.has(key)


def test_a_taken_temporary_name_is_another_writers(
    store: Store, key: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A temporary of the very name is left to whoever writes it; another name is tried."""
    store.put(key, OLD)
    taken = store.root / "tmp" / f"{key.digest}.{os.getpid()}.same"
    taken.write_bytes(b"being written")
    names = iter(["same", "other"])
    monkeypatch.setattr("secrets.token_hex", lambda _: next(names))
    store.put(key, NEW)
    assert taken.read_bytes() == b"being written"
    assert body_of(store, key) == NEW


def test_too_many_open_files(store: Store, key: Key) -> None:
    """A process that really has no descriptor left misses and cannot put; with one, it can."""
    store.put(key, OLD)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.open(os.devnull, os.O_RDONLY)]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (taken[0] + 8, hard))
        with pytest.raises(OSError, match="Too many"):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        assert store.get(key) is None
        assert not store.has(key)
        assert [*store.headers()] == []
        with pytest.raises(CacheWriteError) as caught:
            store.put(key, NEW)
        assert caught.value.errno == errno.EMFILE
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken:
            os.close(descriptor)
    assert body_of(store, key) == OLD
    store.put(key, NEW)
    assert body_of(store, key) == NEW


def test_signals_interrupt_nothing(store: Store, key: Key) -> None:
    """Under a storm of signals, which make calls end with EINTR, every put and get succeeds."""
    caught: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _: caught.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        for n in range(200):
            store.put(key, {"n": n, "data": b"x" * 100_000})
            record = store.get(key)
            assert record is not None
            assert record.body["n"] == n
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert caught
    assert store.counters == {"puts": 200, "hits": 200}


# -- a read -----------------------------------------------------------------------------------

LOOKS: dict[str, Callable[[Store, Key], bool]] = {
    "get": lambda store, key: store.get(key) is not None,
    "has": lambda store, key: store.has(key),
    "headers": lambda store, key: key in {header.key for header in store.headers("winner", "silu")},
}


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("number", READ_ERRNOS, ids=name_of)
@pytest.mark.parametrize("call", ["open", "read", "fstat", "close"])
def test_a_read_that_the_system_refuses(
    store: Store,
    key: Key,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    call: str,
    number: int,
    look: str,
) -> None:
    """It is a miss, counted by its cause at each look and logged once; later the record is there.

    ENOENT is what a plain miss is, and neither counted nor logged.
    """
    store.put(key, OLD)
    path = store.root / key.path

    def is_record(first: object, *_: object, **__: object) -> bool:
        if isinstance(first, int):
            return os.readlink(f"/proc/self/fd/{first}") == str(path)  # noqa: PTH115
        return first in (path, path.name)  # by its name alone within an open folder

    with monkeypatch.context() as patch:
        failing(patch, call, number, applies=is_record, does_it=call == "close")
        assert [LOOKS[look](store, key) for _ in range(3)] == [False] * 3
    counted = 0 if number == errno.ENOENT else 3
    assert store.counters[f"unreadable:{errno.errorcode[number]}"] == counted
    assert store.counters["misses"] == (3 if look == "get" else 0)
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * bool(counted)
    assert LOOKS[look](store, key)
    assert path.exists()
    store.put(key, NEW)
    assert body_of(store, key) == NEW


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("number", [errno.ESTALE, errno.EINTR], ids=name_of)
@pytest.mark.parametrize("call", ["open", "read", "fstat", "scandir"])
def test_a_stale_handle_is_opened_again(
    store: Store, key: Key, monkeypatch: pytest.MonkeyPatch, call: str, number: int, look: str
) -> None:
    """What another host replaced while it was being read is read again, once, and found."""
    store.put(key, OLD)
    with monkeypatch.context() as patch:
        failing(patch, call, number, times=1)
        assert LOOKS[look](store, key)
    assert set(store.counters) <= {"puts", "hits"}


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EPERM, errno.EIO], ids=name_of)
def test_a_stamp_that_is_refused(
    store: Store, key: Key, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A record that cannot be stamped, as in a read-only folder, is a hit like any other."""
    store.put(key, OLD)
    os.utime(store.root / key.path, (1.0, 1.0))
    failing(monkeypatch, "utime", number)
    assert body_of(store, key) == OLD
    assert store.counters == {"puts": 1, "hits": 1}


def test_nothing_is_remembered_as_missing(store: Store, key: Key, root: Path) -> None:
    """A record that another host publishes after a miss is found at the next look."""
    assert store.get(key) is None
    assert not store.has(key)
    assert [*store.headers()] == []
    Store(root).put(key, NEW)
    assert body_of(store, key) == NEW
    assert store.has(key)
    assert [header.key for header in store.headers()] == [key]


# -- a removal --------------------------------------------------------------------------------


@pytest.mark.parametrize("number", WRITE_ERRNOS, ids=name_of)
@pytest.mark.parametrize("call", ["unlink", "open", "stat"])
def test_a_removal_that_the_system_refuses(
    store: Store, key: Key, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    """The error has the system's number and the record is still there; then it can be removed."""
    store.put(key, OLD)
    with monkeypatch.context() as patch:
        failing(patch, call, number)
        with pytest.raises(CacheWriteError) as caught:
            store.delete(key)
        assert caught.value.errno == number
    assert body_of(store, key) == OLD
    assert store.delete(key)
    assert files_below(store.root / "winner") == []


def test_a_file_that_another_process_removed(
    store: Store, key: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two that remove a record one does, and the other hears that it is gone."""
    store.put(key, OLD)
    failing(monkeypatch, "unlink", errno.ENOENT, does_it=True)
    assert not store.delete(key)
    assert not store.has(key)


# -- between two steps ------------------------------------------------------------------------


def before_the(
    monkeypatch: pytest.MonkeyPatch, call: str, happens: Callable[[], object], which: int = 1
) -> list[int]:
    """Have `happens` just before the `which`-th `os.<call>`; gives what says that it did."""
    real, calls, did = getattr(os, call), itertools.count(1), []

    def step(*arguments: Any, **options: Any) -> Any:
        if next(calls) == which and not did:
            did.append(which)
            happens()
        return real(*arguments, **options)

    monkeypatch.setattr(os, call, step)
    return did


@pytest.mark.parametrize("which", [1, 2])
def test_a_reader_that_is_overtaken(
    store: Store, key: Key, monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    """A record that is replaced between opening and reading it is read whole: the old one."""
    store.put(key, OLD)
    did = before_the(monkeypatch, "read", lambda: Store(store.root).put(key, NEW), which)
    assert body_of(store, key) == OLD
    assert did
    assert body_of(store, key) == NEW
    assert "bad" not in str(store.counters)


@pytest.mark.parametrize("which", [1, 2])
def test_a_reader_whose_record_is_removed(
    store: Store, key: Key, monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    """A record that is removed between opening and reading it is still read whole."""
    store.put(key, OLD)
    did = before_the(monkeypatch, "read", lambda: Store(store.root).delete(key), which)
    assert body_of(store, key) == OLD
    assert did
    assert store.get(key) is None


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
def test_a_writer_whose_folders_go(
    store: Store, key: Key, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Whenever another process clears the folders away, the put ends with the record in place."""

    def clear() -> None:
        for folder in ("winner", "tmp"):
            shutil.rmtree(store.root / folder, ignore_errors=True)

    did = before_the(monkeypatch, call, clear)
    store.put(key, NEW)
    assert did
    assert body_of(store, key) == NEW
    assert [*(store.root / "tmp").iterdir()] == []


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
def test_a_writer_whose_cache_goes(
    store: Store, key: Key, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """A root that is removed under a writer is an error, and is not made again."""
    did = before_the(monkeypatch, call, lambda: shutil.rmtree(store.root))
    with pytest.raises(CacheWriteError) as caught:
        store.put(key, NEW)
    assert did
    assert caught.value.errno == errno.ENOENT
    assert not store.root.exists()


def test_a_cache_that_another_takes_the_place_of(store: Store, key: Key, tmp_path: Path) -> None:
    """A store whose root is replaced reads and writes the new one; nothing is remembered."""
    store.put(key, OLD)
    store.root.rename(tmp_path / "away")
    assert store.get(key) is None
    open_root(store.root)
    assert store.get(key) is None
    store.put(key, NEW)
    assert body_of(store, key) == NEW
    assert body_of(Store(tmp_path / "away"), key) == OLD


def test_a_file_takes_the_place_of_a_cache(store: Store, key: Key, tmp_path: Path) -> None:
    """A root that is no folder any more: misses, empty lists, an error for a put."""
    store.put(key, OLD)
    store.root.rename(tmp_path / "away")
    store.root.write_text("no cache")
    assert store.get(key) is None
    assert not store.has(key)
    assert [*store.headers()] == []
    assert not store.delete(key)
    with pytest.raises(CacheWriteError):
        store.put(key, NEW)
    assert store.root.read_text() == "no cache"


@pytest.mark.parametrize("twice", [False, True])
def test_a_good_record_is_not_lost_to_the_quarantine(
    store: Store, key: Key, monkeypatch: pytest.MonkeyPatch, twice: bool
) -> None:
    """A record that is put just before its bad predecessor is moved aside is put back.

    Unless there is an even later one, which stays.
    """
    path = store.root / key.path
    path.parent.mkdir(parents=True)
    path.write_bytes(b"garbage")
    real, steps = os.replace, []
    latest = {"from": "latest"}

    def overtaken(source: Any, target: Any) -> None:
        if "quarantine" not in str(target) or steps:
            return real(source, target)
        steps.append(1)
        Store(store.root).put(key, NEW)
        real(source, target)
        if twice:
            Store(store.root).put(key, latest)
        return None

    monkeypatch.setattr(os, "replace", overtaken)
    assert store.get(key) is None
    assert steps
    assert body_of(store, key) == (latest if twice else NEW)


@pytest.mark.parametrize("call", ["mkdir", "replace", "stat", "scandir"])
@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC], ids=name_of)
def test_a_bad_record_that_cannot_be_moved(
    store: Store, key: Key, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    """Moving aside is a courtesy: where it fails, as in a read-only folder, a miss is a miss."""
    path = store.root / key.path
    path.parent.mkdir(parents=True)
    path.write_bytes(b"garbage")
    with monkeypatch.context() as patch:
        failing(patch, call, number)
        assert store.get(key) is None
    assert store.counters["bad:magic"] == 1
    store.put(key, NEW)
    assert body_of(store, key) == NEW


def test_clearing_goes_on_when_a_folder_goes(
    store: Store, key: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes that clear at once: what one finds gone was removed by the other."""
    store.put(key, OLD)
    did = before_the(monkeypatch, "unlink", lambda: shutil.rmtree(store.root / "winner"))
    assert clear_all(store).files == 0
    assert did
    assert not store.has(key)
