"""How busy the cards are, asked of NVIDIA's management library: no CUDA context, no torch."""

import ctypes
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

_MAX_PROCESSES = 256
_TEXT = 96


@dataclass(frozen=True)
class Usage:
    """What a card is used for now."""

    free_bytes: int
    total_bytes: int
    busy: float  # share of the last sampling period in which some kernel ran
    processes: frozenset[int]  # that have a CUDA context there

    def others(self, ours: int) -> frozenset[int]:
        """The processes that are neither `ours` nor its descendants.

        One of another PID namespace cannot be told apart and counts as somebody else's.
        """
        return frozenset(pid for pid in self.processes if not descends(pid, ours))


class _Memory(ctypes.Structure):
    _fields_ = [(name, ctypes.c_ulonglong) for name in ("total", "free", "used")]


class _Rates(ctypes.Structure):
    _fields_ = [("gpu", ctypes.c_uint), ("memory", ctypes.c_uint)]


class _Process(ctypes.Structure):
    _fields_ = [
        ("pid", ctypes.c_uint),
        ("used", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    ]


def usage(uuid: str) -> Usage | None:
    """The card with a UUID (hexadecimal, as in `Device`); None if that cannot be known."""
    library = _library()
    if library is None or len(uuid) != 32:
        return None
    handle = ctypes.c_void_p()
    if library.nvmlDeviceGetHandleByUUID(spelled(uuid).encode(), ctypes.byref(handle)):
        return None
    memory, rates = _Memory(), _Rates()
    if library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)):
        return None
    if library.nvmlDeviceGetUtilizationRates(handle, ctypes.byref(rates)):
        rates = _Rates(0, 0)  # MIG instances have none
    count, found = ctypes.c_uint(_MAX_PROCESSES), (_Process * _MAX_PROCESSES)()
    if library.nvmlDeviceGetComputeRunningProcesses_v3(handle, ctypes.byref(count), found):
        count.value = 0
    pids = frozenset(int(one.pid) for one in found[: count.value])
    return Usage(int(memory.free), int(memory.total), rates.gpu / 100, pids)


def driver_version() -> str:
    """The driver's release ("580.159.04"), "" without one."""
    library, text = _library(), ctypes.create_string_buffer(_TEXT)
    if library is None or library.nvmlSystemGetDriverVersion(text, _TEXT):
        return ""
    return text.value.decode()


def spelled(uuid: str) -> str:
    """`GPU-8-4-4-4-12`, as the driver's tools write a UUID."""
    parts = (uuid[:8], uuid[8:12], uuid[12:16], uuid[16:20], uuid[20:])
    return "GPU-" + "-".join(parts)


def descends(pid: int, ancestor: int) -> bool:
    """Whether a process is `ancestor` or was started by it, directly or not."""
    while pid > 1:
        if pid == ancestor:
            return True
        try:
            text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        except OSError:
            return False
        pid = int(text.rpartition(")")[2].split()[1])
    return False


@lru_cache(maxsize=1)
def _library() -> Any:
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    return None if library.nvmlInit_v2() else library


def _forget_after_fork() -> None:
    _library.cache_clear()


os.register_at_fork(after_in_child=_forget_after_fork)
