"""Which cards this machine has, asked of the CUDA driver: no torch, no Triton."""

import ctypes
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from .declare import Device
from .errors import JitdError

# target: (name of a card, SMs, bytes of shared memory a program may use), for compiling without
# the card at hand. Source: CUDA programming guide, technical specifications per capability.
_STAND_INS = {
    "sm_75": ("NVIDIA T4", 40, 65_536),
    "sm_80": ("NVIDIA A100", 108, 166_912),
    "sm_86": ("NVIDIA A40", 84, 101_376),
    "sm_87": ("NVIDIA Orin", 16, 166_912),
    "sm_89": ("NVIDIA L40S", 142, 101_376),
    "sm_90": ("NVIDIA H100", 132, 232_448),
    "sm_100": ("NVIDIA B200", 148, 232_448),
    "sm_103": ("NVIDIA B300", 148, 232_448),
    "sm_120": ("NVIDIA RTX PRO 6000", 188, 101_376),
    "sm_121": ("NVIDIA GB10", 48, 101_376),
}


class NoDevice(JitdError):
    """This machine has no CUDA device that the driver can use; the message says why."""


def stand_in(target: str) -> Device:
    """A device to compile for without having it. Raises ValueError for an unknown target."""
    if target not in _STAND_INS:
        raise ValueError(
            f"unknown target {target!r}. Known are {', '.join(_STAND_INS)}: the ones that "
            "Triton 3.6 to 3.9 compile for."
        )
    name, sm_count, shared = _STAND_INS[target]
    return Device(name, target, sm_count, 0, shared)


def capability(target: str) -> int:
    """`sm_90` -> 90."""
    match = re.fullmatch(r"sm_(\d+)a?", target)
    if not match:
        raise ValueError(f"target {target!r} is not of the form sm_90.")
    return int(match[1])


@lru_cache(maxsize=1)
def devices() -> tuple[Device, ...]:
    """The cards this process sees, in CUDA's order; empty without a driver or a card."""
    try:
        return tuple(_describe(index) for index in range(_count()))
    except NoDevice:
        return ()


def why_no_device() -> str | None:
    """Why `devices()` is empty, or None if it is not."""
    try:
        return None if _count() else "the driver reports no CUDA device"
    except NoDevice as error:
        return str(error)


def driver() -> Any:
    """`cuda.bindings.driver`, initialised. Raises NoDevice where there is no libcuda.

    The one place that decides whether this process may use CUDA.
    """
    if not _loads("libcuda.so.1"):
        raise NoDevice("no NVIDIA driver (libcuda.so.1) on this machine")
    try:
        from cuda.bindings import driver as cuda  # noqa: PLC0415  (10 to 40 ms: on first use)
    except ImportError as error:
        raise NoDevice(f"cuda-bindings cannot be imported: {error}") from error
    (status,) = cuda.cuInit(0)
    if status != cuda.CUresult.CUDA_SUCCESS:
        raise NoDevice(f"cuInit failed: {status.name}")
    return cuda


def check(result: tuple[Any, ...]) -> Any:
    """Unpack a driver call's (status, value...), raising LaunchError on any failure."""
    status, *values = result
    if status != 0:
        from .errors import LaunchError  # noqa: PLC0415

        raise LaunchError(f"the CUDA driver answered {getattr(status, 'name', status)}.")
    return values[0] if len(values) == 1 else tuple(values) or None


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _count() -> int:
    return int(check(driver().cuDeviceGetCount()))


def _describe(index: int) -> Device:
    cuda = driver()
    handle = check(cuda.cuDeviceGet(index))
    attribute = cuda.CUdevice_attribute

    def ask(name: str) -> int:
        return int(check(cuda.cuDeviceGetAttribute(getattr(attribute, name), handle)))

    major = ask("CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR")
    minor = ask("CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR")
    version = int(check(cuda.cuDriverGetVersion()))
    return Device(
        name=check(cuda.cuDeviceGetName(128, handle)).split(b"\0")[0].decode(),
        target=f"sm_{major}{minor}",
        sm_count=ask("CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT"),
        memory_bytes=int(check(cuda.cuDeviceTotalMem(handle))),
        max_shared_bytes=ask("CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN"),
        uuid=bytes(check(cuda.cuDeviceGetUuid(handle)).bytes).hex(),
        driver=_kernel_driver() or f"CUDA {version // 1000}.{version % 1000 // 10}",
        index=index,
    )


def _kernel_driver() -> str | None:
    """The driver's release ("580.159.04"): CUDA's own version number changes less often."""
    try:
        return Path("/sys/module/nvidia/version").read_text(encoding="ascii").strip()
    except OSError:
        return None
