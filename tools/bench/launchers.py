"""One kernel launch, in every way there is from Python: what jitd's own is measured against.

Each function takes the same launch and gives runs of no arguments. The driver copies arguments
when it is called, so prepared ones can be used again.
"""

import ctypes
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ...jit import device as devices
from ...jit.declare import Launch, Pointer
from ...jit.launch import Loaded
from .stopwatch import Run

_CTYPES: Mapping[str, Any] = {
    "f32": ctypes.c_float,
    "u32": ctypes.c_int32,
    "s32": ctypes.c_int32,
    "b32": ctypes.c_int32,
    "u64": ctypes.c_uint64,
    "s64": ctypes.c_int64,
    "b64": ctypes.c_uint64,
}


@dataclass(frozen=True)
class OneLaunch:
    """A stored binary, loaded, and the launch it is for; the tensors must outlive it."""

    artifact: Mapping[str, Any]
    loaded: Loaded
    launch: Launch
    tensors: Mapping[str, torch.Tensor]
    stream: int

    @property
    def block(self) -> tuple[int, int, int]:
        return 32 * self.launch.num_warps, 1, 1

    def tensors_in_order(self) -> Iterator[torch.Tensor]:
        """The tensors that the binary's arguments begin with."""
        for name, _ in self.artifact["params"]:
            value = self.launch.args[name]
            if not isinstance(value, Pointer):
                return
            yield self.tensors[value.name]

    def arguments(self) -> list[Any]:
        """The binary's arguments as ctypes values, scratch pointers included."""
        values: list[Any] = []
        for name, ptx_type in self.artifact["params"]:
            value = self.launch.args[name]
            if isinstance(value, Pointer):
                value = self.tensors[value.name].data_ptr()
            values.append(_CTYPES[ptx_type](value))
        return values + [ctypes.c_uint64(0) for _ in range(self.artifact["scratch_pointers"])]


def _addresses(values: list[Any]) -> Any:
    return (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))


def by_launch_kernel(one: OneLaunch) -> Run:
    """cuda.bindings, cuLaunchKernel, arguments prepared."""
    cuda = devices.driver()
    values = one.arguments()
    pointers = _addresses(values)
    address, shared = ctypes.addressof(pointers), one.artifact["shared"]
    function, stream = cuda.CUfunction(one.loaded.function), cuda.CUstream(one.stream)
    call, grid, block = cuda.cuLaunchKernel, one.launch.grid, one.block

    def run(_alive: object = (values, pointers)) -> None:
        (status,) = call(function, *grid, *block, shared, stream, address, 0)
        if status:
            raise RuntimeError(f"cuLaunchKernel: {status}")

    return run


def by_launch_kernel_ex(one: OneLaunch) -> Run:
    """cuda.bindings, cuLaunchKernelEx, arguments and configuration prepared."""
    cuda = devices.driver()
    values = one.arguments()
    pointers = _addresses(values)
    address = ctypes.addressof(pointers)
    function, call = cuda.CUfunction(one.loaded.function), cuda.cuLaunchKernelEx
    config = cuda.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = one.launch.grid
    config.blockDimX, config.blockDimY, config.blockDimZ = one.block
    config.sharedMemBytes = one.artifact["shared"]
    config.hStream = one.stream
    config.attrs = []
    config.numAttrs = 0

    def run(_alive: object = (values, pointers)) -> None:
        (status,) = call(config, function, address, 0)
        if status:
            raise RuntimeError(f"cuLaunchKernelEx: {status}")

    return run


class _LaunchConfig(ctypes.Structure):
    """CUlaunchConfig of cuda.h."""

    _fields_ = (
        *((name, ctypes.c_uint) for name in (
            "gridDimX", "gridDimY", "gridDimZ", "blockDimX", "blockDimY", "blockDimZ",
            "sharedMemBytes",
        )),
        ("hStream", ctypes.c_void_p),
        ("attrs", ctypes.c_void_p),
        ("numAttrs", ctypes.c_uint),
    )  # fmt: skip


def by_ctypes(one: OneLaunch) -> Run:
    """libcuda through ctypes, cuLaunchKernelEx, arguments and configuration prepared."""
    call = ctypes.CDLL("libcuda.so.1").cuLaunchKernelEx
    call.argtypes = [ctypes.c_void_p] * 4
    call.restype = ctypes.c_int
    values = one.arguments()
    pointers = _addresses(values)
    config = _LaunchConfig(
        *one.launch.grid, *one.block, one.artifact["shared"], one.stream, None, 0
    )
    at, address = ctypes.addressof(config), ctypes.addressof(pointers)
    function = one.loaded.function

    def run(_alive: object = (values, pointers, config)) -> None:
        if status := call(at, function, address, None):
            raise RuntimeError(f"cuLaunchKernelEx: CUDA error {status}")

    return run


def by_cuda_core(one: OneLaunch) -> tuple[Run, Run]:
    """cuda.core.launch: with prepared arguments, and with data_ptr and ctypes in each call."""
    from cuda.core import (  # noqa: PLC0415  (jitd does without; measured to know why)
        LEGACY_DEFAULT_STREAM,
        Device,
        LaunchConfig,
        ObjectCode,
        launch,
    )

    if one.stream != 0:
        raise RuntimeError("torch's current stream is not the default stream")
    Device(torch.cuda.current_device()).set_current()
    module = ObjectCode.from_cubin(one.artifact["cubin"])
    kernel = module.get_kernel(one.artifact["symbol"])
    config = LaunchConfig(grid=one.launch.grid, block=one.block, shmem_size=one.artifact["shared"])
    prepared = one.arguments()
    tensors = list(one.tensors_in_order())
    scalars = [(type(value), value.value) for value in prepared[len(tensors) :]]

    def with_prepared(_alive: object = module) -> None:
        launch(LEGACY_DEFAULT_STREAM, config, kernel, *prepared)

    def with_each() -> None:
        launch(
            LEGACY_DEFAULT_STREAM,
            config,
            kernel,
            *[tensor.data_ptr() for tensor in tensors],
            *[kind(value) for kind, value in scalars],
        )

    return with_prepared, with_each


def by_triton(
    kernel: Any,
    grid: tuple[int, int, int],
    arguments: Mapping[str, Any],
    constexprs: Mapping[str, Any],
    **options: Any,
) -> tuple[Run, Callable[[torch.Tensor], None], Run]:
    """Triton: `kernel[grid](...)`, the same with another first argument, `CompiledKernel.run`."""
    first, *rest = arguments.values()

    def launch() -> None:
        kernel[grid](first, *rest, **constexprs, **options)

    def launch_into(out: torch.Tensor) -> None:
        kernel[grid](out, *rest, **constexprs, **options)

    compiled = kernel[grid](first, *rest, **constexprs, **options)
    run, function, packed = compiled.run, compiled.function, compiled.packed_metadata
    stream = torch._C._cuda_getCurrentRawStream(torch.cuda.current_device())
    values = [*arguments.values(), *constexprs.values()]

    def run_compiled() -> None:
        run(*grid, stream, function, packed, None, None, None, *values)

    return launch, launch_into, run_compiled
