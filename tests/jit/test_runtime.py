"""What a process opens: its cache is kept within the settings' bounds, and its counts are kept."""

import subprocess
import sys
from pathlib import Path

import pytest
from jitd.cache import counters
from jitd.cache.keys import Key
from jitd.cache.paths import open_root
from jitd.jit.runtime import Runtime
from jitd.jit.settings import Settings
from jitd.jit.stats import Stats


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "runtime"


def runtime(**settings: object) -> Runtime:
    return Runtime(Settings.read({}, **settings), Stats())


def test_what_is_put_is_bounded(place: Path) -> None:
    """The store that a process opens evicts by itself when what it puts exceeds the bound."""
    store = runtime(cache_dir=place, cache_max_files=10).store
    for n in range(30):
        store.put(Key.of("artifact", "silu_kernel", n=n), {"cubin": bytes(100)})
    assert 1 <= sum(1 for _ in store.headers()) <= 10
    assert counters.total(store.root)["evictions"] >= 20


def test_folders_left_out_and_hits_behind_are_kept(place: Path, tmp_path: Path) -> None:
    """What the tiers behind count stands in the cache's counters: a folder that cannot be used, and
    hits in one that can."""
    behind = runtime(cache_dir=tmp_path / "behind").store
    key = Key.of("winner", "silu", n=1)
    behind.put(key, {})
    path = [behind.root, tmp_path / "missing"]
    store = runtime(cache_dir=place, cache_path=path).store
    assert store.get(key)
    assert runtime(cache_dir=tmp_path / "next").store  # of two in a process, the first is done
    assert counters.total(open_root(place)) == {"hits": 1, "hits_behind": 1, "left_out": 1}


def test_a_start_imports_nothing_of_upkeep() -> None:
    """What a process loads at its start knows neither bundles nor signatures nor verifying."""
    code = "import sys, jitd.jit.runtime; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    upkeep = {f"jitd.cache.{name}" for name in ("bundle", "signing", "verify")}
    assert (upkeep | {"jitd.jit.adopt", "cryptography"}) & set(done.stdout.split()) == set()
