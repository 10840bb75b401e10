"""An eviction killed at some system call: nothing lost or half-written, and the next ends it."""

import signal
import time
from pathlib import Path

import pytest
from jitd.cache import evict
from jitd.cache.evict import TEMPORARY_S, Bounds
from jitd.cache.keys import Key
from jitd.cache.store import TEMPORARIES, Store
from jitd.cache.verify import verify

HERE = Path(__file__).parent
WINNERS = [Key.of("winner", "silu", n=n) for n in range(4)]
BINARIES = [Key.of("artifact", "silu_kernel", n=n) for n in range(12)]
BOUNDS = Bounds(1 << 40, len(WINNERS) + 2)
CODE = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from soak import die_in_call
from jitd.cache import evict
from jitd.cache.store import Store
store = Store(Path(sys.argv[2]))
die_in_call(int(sys.argv[3]))
evict.evict(store, evict.Bounds(1 << 40, int(sys.argv[4])))
"""


@pytest.mark.timeout(60)
@pytest.mark.parametrize("call", [*range(1, 137, 9), *range(137, 149)])
def test_killed_in_a_call(store: Store, spawn, call: int) -> None:
    """Killed before, in or after a call, it has removed whole files in the right order; the next
    eviction comes to the bounds, and what was half written goes when it is old."""
    for key in WINNERS + BINARIES:
        store.put(key, {"key": key.path})
    assert spawn(CODE, HERE, store.root, call, BOUNDS.max_files).exit_code() == -signal.SIGKILL

    records = [store.get(key) for key in WINNERS + BINARIES]
    assert [record.body["key"] for record in records if record] == [
        record.key.path for record in records if record
    ]
    assert all(records[: len(WINNERS)])
    assert sum(record is not None for record in records) >= BOUNDS.max_files
    assert list(verify(store)) == []

    evict.evict(store, BOUNDS)
    assert sum(store.has(key) for key in WINNERS + BINARIES) in range(
        len(WINNERS), BOUNDS.max_files + 1
    )
    assert all(store.has(key) for key in WINNERS)
    evict.evict(store, BOUNDS, now=time.time() + TEMPORARY_S + 1)
    assert store.names_in(TEMPORARIES) == []
