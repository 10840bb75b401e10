"""What one process has of jitd: settings, the open cache, a builder per device."""

import os
import threading
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ..cache import counters
from ..cache.evict import Bounds, Keeper
from ..cache.locks import KeyLocks
from ..cache.paths import default_root, open_root
from ..cache.store import Store
from ..cache.tiers import store_over
from . import device as devices
from .build import Builder
from .compile import CompilePool, shared_pool
from .declare import Device
from .isolated import InProcess, Tuner, shared_tuner
from .memo import keep_digests_in
from .op import Op
from .recorder import Recorder
from .settings import Mode, Settings
from .sign import Call
from .stats import STATS, Stats
from .toolchain import toolchain

if TYPE_CHECKING:
    from .background import Background, Daemon


class Runtime:
    """Settings and everything opened under them, each at its first use."""

    def __init__(self, settings: Settings, stats: Stats = STATS) -> None:
        self.settings = settings
        self.stats = stats
        self.recorder = Recorder(settings.record, stats) if settings.record else None
        self._builders: dict[str, Builder] = {}
        self._store: Store | None = None
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        return f"<Runtime: mode {self.settings.mode}, cache {self.cache_dir}>"

    @property
    def cache_dir(self) -> Path:
        return self.settings.cache_dir or default_root()

    @property
    def store(self) -> Store:
        """The cache and those behind it, opened. Raises CacheFolderError if it must not be used."""
        with self._lock:
            if self._store is None:
                self._store = store_over(Store, open_root(self.cache_dir), self.settings.cache_path)
                keep(self._store, self.settings, self.stats)
                keep_digests_in(self._store)
            return self._store

    def builder(self, device: Device) -> Builder:
        """The builder for a device (or for a stand-in to compile for)."""
        with self._lock:
            name = device.uuid or device.target
            if name not in self._builders:
                self._builders[name] = builder_of(
                    self.store, device, self.settings, self.pool, self.stats
                )
                if self.settings.daemon != "off":
                    self._builders[name].elsewhere = self._elsewhere
            return self._builders[name]

    def builder_at(self, index: int) -> Builder:
        """The builder for the card with a CUDA index."""
        return self.builder(devices.devices()[index])

    @cached_property
    def mode(self) -> Mode:
        """What a miss does: as set; `auto` is `background` if a daemon answers, else `tune`."""
        if self.settings.mode != "auto":
            return self.settings.mode
        with self._lock:
            return "background" if self.daemon.answers() else "tune"

    @cached_property
    def daemon(self) -> "Daemon":
        from .background import Daemon  # noqa: PLC0415  (30 ms, on a miss only)

        return Daemon(self.settings, self.store.root, self.stats)

    @cached_property
    def background(self) -> "Background":
        """The thread that has things built. Raises DaemonTrouble if there must be a daemon, and
        is none."""
        from .background import Background  # noqa: PLC0415

        if self.settings.daemon == "require":
            self.daemon.connect(start=True).close()
        return Background(self.daemon)

    def _elsewhere(self, builder: Builder, op: Op, call: Call) -> None:
        if builder.device.uuid:
            self.daemon.build(builder, op, call)

    def pool(self) -> CompilePool:
        return shared_pool(self.settings.jobs, self.settings.compile_timeout_s)


def keep(store: Store, settings: Settings, stats: Stats = STATS) -> None:
    """Have a store kept within the settings' bounds, and this process's counts added to it."""
    bounds = Bounds(settings.cache_max_bytes, settings.cache_max_files)
    store.after_put = Keeper(store, bounds).note
    counters.keep(counters.Tally(store.root, stats.snapshot, own=store.snapshot))


def builder_of(
    store: Store,
    device: Device,
    settings: Settings,
    pool: Callable[[], CompilePool],
    stats: Stats = STATS,
) -> Builder:
    """A builder for a device (or a stand-in) over an open cache, as the settings say."""

    def tuner() -> Tuner:
        share = settings.tune_memory_share
        if not settings.isolate:
            return InProcess(device, share)
        return shared_tuner(device, step_timeout_s=settings.step_timeout_s, memory_share=share)

    return Builder(
        store=store,
        locks=KeyLocks(store.root),
        pool=pool,
        device=device,
        toolchain=toolchain(),
        stats=stats,
        tuner=tuner,
        memory_share=settings.tune_memory_share,
    )


_current: Runtime | None = None
_lock = threading.Lock()


def current() -> Runtime:
    """The process's runtime; read from the environment at the first use."""
    global _current  # noqa: PLW0603  (one per process is the point)
    if _current is None:
        with _lock:
            if _current is None:
                _current = Runtime(Settings.read())
    return _current


def configure(**settings: object) -> Runtime:
    """Replace the process's settings: `configure(mode="strict", cache_dir=...)`.

    What is not named keeps its value. Kernels in use stay loaded but are looked up again.
    Raises SettingError for a value that a setting cannot have.
    """
    global _current  # noqa: PLW0603
    with _lock:
        before = _current.settings if _current else Settings.read()
        _current = Runtime(before.replace(**settings))
    _forget_tables()
    return _current


def _forget_tables() -> None:
    import sys  # noqa: PLC0415

    dispatch = sys.modules.get(f"{__package__}.dispatch")
    if dispatch is not None:  # no op has been declared otherwise, and torch is not wanted here
        dispatch.forget()


def _after_fork() -> None:
    """A child has no CUDA context, no workers and no locks of its parent's; it begins anew."""
    global _current, _lock  # noqa: PLW0603
    _lock = threading.Lock()
    if _current is not None:
        _current = Runtime(_current.settings, _current.stats)
        _forget_tables()


os.register_at_fork(after_in_child=_after_fork)
