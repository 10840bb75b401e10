"""Loading stored binaries and launching plans.

Through cuda.bindings, NVIDIA's own binding of the driver: needs neither Triton nor a C compiler,
and does not change with Triton's launcher. (`cuda.core`, built on top of it, is friendlier, and
measured slower to import and to launch: `python -m jitd.tools.bench host`.)
"""

import ctypes
import logging
import math
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from . import device as devices
from .declare import Device, Launch, Plan, Pointer
from .errors import LaunchError
from .scalars import Wanted, Words
from .sign import ITEM_BYTES, Passed, TensorSpec
from .stats import STATS
from .tensors import DTYPES

log = logging.getLogger("jitd.launch")

_STATIC_SHARED_BYTES = 48 << 10  # above it a kernel must be allowed more, once per device
_SPARE_BARRIERS = 32  # launches of one executable that may be captured into graphs for free
_ALIGNMENT = 256  # of each workspace within the buffer of a call

# Barriers in graphs, which know their addresses only and may outlive what launched them: they are
# never freed.
_captured: list[list[torch.Tensor]] = []

# PTX type of a parameter -> struct format and, for integers, width in bits. A float given for an
# .f32 must be packed as one: the bytes of a Python float, a double, would be read as garbage
# without any error.
_FORMATS = {
    "f32": ("<f", 0), "f64": ("<d", 0),
    **{f"{sign}{bits}": (form, bits) for sign in "sub"
       for bits, form in ((8, "<B"), (16, "<H"), (32, "<I"), (64, "<Q"))},
}  # fmt: skip


@dataclass(frozen=True)
class Loaded:
    """A binary in the memory of one device, ready to launch."""

    module: int
    function: int
    params: tuple[tuple[str, str], ...]  # (name, PTX type) of what the binary takes, in order
    scratch_pointers: int
    shared_bytes: int
    registers: int
    local_bytes: int  # per thread, spills included

    @classmethod
    def load(cls, artifact: Mapping[str, Any], device: Device) -> "Loaded":
        """Load the cubin of an artifact's body onto `device`. Raises LaunchError.

        Allowed while a CUDA graph is being captured (loading is no work on a stream).
        """
        cuda = devices.driver()
        attribute = cuda.CUfunction_attribute
        with torch.cuda.device(device.index), _Relaxed(cuda):
            if not int(devices.check(cuda.cuCtxGetCurrent()) or 0):
                torch.empty(1, device=f"cuda:{device.index}")  # makes torch's context current
            module = devices.check(cuda.cuModuleLoadData(artifact["cubin"]))
            function = devices.check(cuda.cuModuleGetFunction(module, artifact["symbol"].encode()))
            if artifact["shared"] > _STATIC_SHARED_BYTES:
                wanted = attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                devices.check(cuda.cuFuncSetAttribute(function, wanted, artifact["shared"]))

            def ask(name: str) -> int:
                value = getattr(attribute, f"CU_FUNC_ATTRIBUTE_{name}")
                return int(devices.check(cuda.cuFuncGetAttribute(value, function)))

            return cls(
                module=int(module),
                function=int(function),
                params=tuple((n, t) for n, t in artifact["params"]),
                scratch_pointers=artifact["scratch_pointers"],
                shared_bytes=artifact["shared"],
                registers=ask("NUM_REGS"),
                local_bytes=ask("LOCAL_SIZE_BYTES"),
            )

    def resident(self, num_warps: int, device: Device) -> int:
        """Programs of `num_warps` warps that the card holds at once."""
        cuda = devices.driver()
        asked = cuda.cuOccupancyMaxActiveBlocksPerMultiprocessor(
            cuda.CUfunction(self.function), 32 * num_warps, self.shared_bytes
        )
        return int(devices.check(asked)) * device.sm_count

    def unload(self) -> None:
        """Free the device's memory for the binary. Nothing may launch it any more."""
        cuda = devices.driver()
        devices.check(cuda.cuModuleUnload(self.module))


_loaded: dict[tuple[str, int], Loaded] = {}


def loaded_once(artifact: Mapping[str, Any], device: Device) -> Loaded:
    """The artifact's binary on `device`, loaded at the first call and kept for the process."""
    key = artifact["cubin_digest"], device.index
    if key not in _loaded:
        STATS.count("loads")
        _loaded[key] = Loaded.load(artifact, device)
    return _loaded[key]


def forget_loaded() -> None:
    """Drop every handle: a forked child has no CUDA context in which they would mean anything."""
    _loaded.clear()


os.register_at_fork(after_in_child=forget_loaded)


class _Relaxed:
    """While open, this thread may call what a capture elsewhere in the process would forbid."""

    def __init__(self, cuda: Any) -> None:
        self.cuda = cuda

    def __enter__(self) -> None:
        relaxed = self.cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        self.before = devices.check(self.cuda.cuThreadExchangeStreamCaptureMode(relaxed))

    def __exit__(self, *exc: object) -> None:
        devices.check(self.cuda.cuThreadExchangeStreamCaptureMode(self.before))


class Executable:
    """One call, ready to be repeated: `executable(x, weight, ...) -> output(s)`.

    It holds shapes, strides, scalars and functions, but no tensor of a call. Arguments are the
    op's tensor arguments in order, which must have the facts (dtype, shape, strides, alignment,
    device) that it was made for; the in-process table guarantees that. `places` are those of
    `inputs` among the arguments if it is called with others, too: optional ones that are None.
    Behind the tensors come the scalars named in `varying`, in that order; `into` alone may do
    without them, and takes their examples.
    """

    def __init__(
        self,
        plan: Plan,
        loaded: Sequence[Loaded],
        inputs: Mapping[str, TensorSpec],
        device: Device,
        places: Sequence[int] | None = None,
        varying: Sequence[str] = (),
    ) -> None:
        self.device = device
        self._places = list(range(len(inputs))) if places is None else list(places)
        self._gaps = places is not None
        self._torch_device = torch.device("cuda", device.index)
        self._outputs = [(s.shape, s.strides, DTYPES[s.dtype]) for s in plan.outputs.values()]
        # torch.empty_like is the quickest way to an output that is laid out as an input is.
        specs = [s.like(aligned=True, strides=s.strides) for s in inputs.values()]
        outputs = list(plan.outputs.values())
        dense = len(outputs) == 1 and outputs[0] in specs and outputs[0].order is not None
        self._like = specs.index(outputs[0]) if dense else None
        self._contiguous = [i for i, name in enumerate(inputs) if name in plan.contiguous]
        scratch = {n: w for n, w in plan.workspaces.items() if not w.zeroed}
        self._zeroed = [(w.numel, DTYPES[w.dtype]) for w in plan.workspaces.values() if w.zeroed]
        self._zeroed_by_stream: dict[int, list[torch.Tensor]] = {}
        self._spare = self._spare_barriers()
        offsets, self._scratch_bytes = {}, 0
        for name, workspace in scratch.items():
            offsets[name] = self._scratch_bytes
            size = workspace.numel * ITEM_BYTES[workspace.dtype]
            self._scratch_bytes += math.ceil(size / _ALIGNMENT) * _ALIGNMENT
        # Where each pointer comes from: an index into inputs + outputs + zeroed + [scratch].
        self._inputs = len(inputs)
        names = [*inputs, *plan.outputs, *(n for n, w in plan.workspaces.items() if w.zeroed)]
        sources = {name: (index, 0) for index, name in enumerate(names)}
        sources |= {name: (len(names), offset) for name, offset in offsets.items()}
        # Behind them all the scalars that vary, as words: to a launch they are addresses.
        self._varying = len(varying)
        words = Words.of(plan.launches, loaded, varying)
        self._words = words if words.wanted else None
        first = len(names) + (1 if self._scratch_bytes else 0)
        scalars = {wanted: (first + n, 0) for n, wanted in enumerate(words.wanted)}
        self._steps = [
            _Step(launch, binary, sources, scalars)
            for launch, binary in zip(plan.launches, loaded, strict=True)
        ]

    def call(self) -> Callable[..., Any]:
        """The quickest function that does what calling this does."""
        step = self._steps[0] if len(self._steps) == 1 else None
        general = self._with_scalars if self._varying else self
        if step is None or self._like is None or self._zeroed or self._contiguous:
            return general
        if self._scratch_bytes or not step.plain:
            return general
        if self._words is None:
            return general if self._varying else self._unrolled(step, self._like)
        if not self._varying:  # called without the scalars, with examples of them
            return general
        return self._unrolled_with_scalars(step, self._like, self._words)

    def _unrolled(self, step: "_Step", like: int) -> Callable[..., Any]:
        """One plain launch, one output like an input, nothing else: without loops and lists."""
        index, general, like = self.device.index, self, self._places[like]
        inputs = [(slot, self._places[at]) for slot, at, _ in step.pointers if at < self._inputs]
        results = [slot for slot, at, _ in step.pointers if at == self._inputs]
        get_device, get_stream = torch._C._cuda_getDevice, torch._C._cuda_getCurrentRawStream
        empty_like, launch = torch.empty_like, devices.driver().cuLaunchKernel
        function, shape, free = step.function, step.shape, step.free

        def call(*tensors: torch.Tensor) -> torch.Tensor:
            if get_device() != index:
                return general(*tensors)
            output = empty_like(tensors[like])
            try:
                arguments = free.pop()
            except IndexError:
                arguments = step.new_arguments()
            slots = arguments.slots
            for slot, at in inputs:
                slots[slot] = tensors[at].data_ptr()
            for slot in results:
                slots[slot] = output.data_ptr()
            (status,) = launch(function, *shape, get_stream(index), arguments.address, 0)
            free.append(arguments)
            if status:
                raise step.error(status)
            return output

        return call

    def _unrolled_with_scalars(self, step: "_Step", like: int, words: Words) -> Callable[..., Any]:
        """The same where the launch is given scalars anew at each call."""
        index, general, like = self.device.index, self._with_scalars, self._places[like]
        inputs = [(slot, self._places[at]) for slot, at, _ in step.pointers if at < self._inputs]
        results = [slot for slot, at, _ in step.pointers if at == self._inputs]
        scalars = [(slot, at - self._inputs - 1) for slot, at, _ in step.pointers]
        scalars = [(slot, word) for slot, word in scalars if word >= 0]
        get_device, get_stream = torch._C._cuda_getDevice, torch._C._cuda_getCurrentRawStream
        empty_like, launch = torch.empty_like, devices.driver().cuLaunchKernel
        function, shape, free = step.function, step.shape, step.free
        pack, behind = words.pack, -self._varying

        def call(*args: Any) -> torch.Tensor:
            if get_device() != index:
                return general(*args)
            packed = pack(args[behind:])
            output = empty_like(args[like])
            try:
                arguments = free.pop()
            except IndexError:
                arguments = step.new_arguments()
            slots = arguments.slots
            for slot, at in inputs:
                slots[slot] = args[at].data_ptr()
            for slot in results:
                slots[slot] = output.data_ptr()
            for slot, word in scalars:
                slots[slot] = packed[word]
            (status,) = launch(function, *shape, get_stream(index), arguments.address, 0)
            free.append(arguments)
            if status:
                raise step.error(status)
            return output

        return call

    def _with_scalars(self, *args: Any) -> Any:
        """Tensors, then the scalars that vary."""
        return self(*args[: -self._varying], scalars=args[-self._varying :])

    def __call__(self, *tensors: Any, scalars: Sequence[float] | None = None) -> Any:
        if self._gaps:
            tensors = tuple(tensors[place] for place in self._places)
        if self._like is not None:
            outputs = [torch.empty_like(tensors[self._like])]
        else:
            outputs = [
                torch.empty_strided(shape, strides, dtype=dtype, device=self._torch_device)
                for shape, strides, dtype in self._outputs
            ]
        self.into(tensors, outputs, scalars)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def into(
        self,
        inputs: Sequence[torch.Tensor],
        outputs: Sequence[torch.Tensor],
        scalars: Sequence[float] | None = None,
    ) -> None:
        """Compute into given outputs, on the current stream of the executable's device.

        `inputs` are tensors only, without the places of those that are None.
        """
        index = self.device.index
        if torch._C._cuda_getDevice() != index:
            with torch.cuda.device(index):
                return self.into(inputs, outputs, scalars)
        if self._contiguous:
            inputs = [t.contiguous() if i in self._contiguous else t for i, t in enumerate(inputs)]
        stream = torch._C._cuda_getCurrentRawStream(index)
        addresses = [t.data_ptr() for t in inputs]
        addresses += [t.data_ptr() for t in outputs]
        # Held until the launches are enqueued: memory that is freed before could be given out
        # again to the scratch of this very call.
        barriers = self._barriers(stream) if self._zeroed else ()
        addresses += [t.data_ptr() for t in barriers]
        if self._scratch_bytes:
            scratch = torch.empty(self._scratch_bytes, dtype=torch.uint8, device=self._torch_device)
            addresses.append(scratch.data_ptr())
        if self._words is not None:
            words = self._words
            addresses += words.examples if scalars is None else words.pack(scalars)
        for step in self._steps:
            step.launch(stream, addresses)
        return None

    def _barriers(self, stream: int) -> Sequence[torch.Tensor]:
        """Zeroed workspaces: one set per stream, whose launches follow one another.

        Each launch captured into a graph gets a set of its own, for good: the graph may be
        replayed on any stream, beside launches of this one. The set must not come from the graph's
        memory pool, where earlier nodes of the graph may have written to the same memory; when the
        spare ones are used up, one from the pool is zeroed by the graph at each replay.
        """
        if torch._C._cuda_isCurrentStreamCapturing():
            try:
                barriers = self._spare.pop()
            except IndexError:
                return self._new_barriers()
            _captured.append(barriers)
            return barriers
        if stream not in self._zeroed_by_stream:
            self._zeroed_by_stream[stream] = self._new_barriers()
        return self._zeroed_by_stream[stream]

    def _spare_barriers(self) -> list[list[torch.Tensor]]:
        if not self._zeroed or torch._C._cuda_isCurrentStreamCapturing():
            return []
        slabs = [  # each set begins at 16 bytes
            torch.zeros(
                _SPARE_BARRIERS, math.ceil(n / 4) * 4, dtype=d, device=self._torch_device
            ).unbind()
            for n, d in self._zeroed
        ]
        torch.cuda.current_stream(self._torch_device).synchronize()  # zero before any replay
        return [list(one) for one in zip(*slabs, strict=True)]

    def _new_barriers(self) -> list[torch.Tensor]:
        return [torch.zeros(n, dtype=d, device=self._torch_device) for n, d in self._zeroed]


class _Step:
    """One prepared launch. Only the addresses and the stream change between calls."""

    def __init__(
        self,
        launch: Launch,
        binary: Loaded,
        places: Mapping[str, tuple[int, int]],
        scalars: Mapping[Wanted, tuple[int, int]],
    ) -> None:
        self._driver = devices.driver()
        self._launch, self._binary = launch, binary
        self.function = binary.function
        self.shape = (*launch.grid, 32 * launch.num_warps, 1, 1, binary.shared_bytes)
        self.plain = not (launch.cooperative or launch.dependent)
        self.pointers: list[tuple[int, int, int]] = []  # slot, index of the address, offset
        self._scalars: list[tuple[int, bytes]] = []
        for slot, (name, ptx_type) in enumerate(binary.params):
            value = launch.args[name]
            if isinstance(value, Pointer):
                self.pointers.append((slot, *places[value.name]))
            elif isinstance(value, Passed):
                self.pointers.append((slot, *scalars[value.name, ptx_type]))
            else:
                self._scalars.append((slot, _packed(ptx_type, value, name)))
        self._slots = len(binary.params) + binary.scratch_pointers
        # Each launch in flight needs argument memory of its own (the driver copies it, but other
        # threads may run before it does); list.pop and append are atomic.
        self.free: list[_Arguments] = [self.new_arguments()]

    def launch(self, stream: int, addresses: Sequence[int]) -> None:
        try:
            arguments = self.free.pop()
        except IndexError:
            arguments = self.new_arguments()
        slots = arguments.slots
        for slot, index, offset in self.pointers:
            slots[slot] = addresses[index] + offset
        if self.plain:
            (status,) = self._driver.cuLaunchKernel(
                self.function, *self.shape, stream, arguments.address, 0
            )
        else:
            if arguments.stream != stream:
                arguments.config.hStream = arguments.stream = stream
            (status,) = self._driver.cuLaunchKernelEx(
                arguments.config, self.function, arguments.address, 0
            )
        self.free.append(arguments)
        if status:
            raise self.error(status)

    def error(self, status: Any) -> LaunchError:
        return LaunchError(f"{self._launch.kernel}: the CUDA driver answered {status.name}.")

    def new_arguments(self) -> "_Arguments":
        slots = (ctypes.c_uint64 * self._slots)()
        for slot, packed in self._scalars:
            ctypes.memmove(ctypes.addressof(slots) + 8 * slot, packed, len(packed))
        pointers = (ctypes.c_void_p * self._slots)(
            *(ctypes.addressof(slots) + 8 * i for i in range(self._slots))
        )
        config = None if self.plain else self._new_config()
        return _Arguments(config, slots, pointers, ctypes.addressof(pointers))

    def _new_config(self) -> Any:
        cuda = self._driver
        config = cuda.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = self._launch.grid
        config.blockDimX, config.blockDimY, config.blockDimZ = 32 * self._launch.num_warps, 1, 1
        config.sharedMemBytes = self._binary.shared_bytes
        attributes = []
        kinds = cuda.CUlaunchAttributeID
        if self._launch.cooperative:
            attribute = cuda.CUlaunchAttribute()
            attribute.id = kinds.CU_LAUNCH_ATTRIBUTE_COOPERATIVE
            attribute.value.cooperative = 1
            attributes.append(attribute)
        if self._launch.dependent:
            attribute = cuda.CUlaunchAttribute()
            attribute.id = kinds.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
            attribute.value.programmaticStreamSerializationAllowed = 1
            attributes.append(attribute)
        config.attrs = attributes
        config.numAttrs = len(attributes)
        return config


@dataclass
class _Arguments:
    config: Any
    slots: Any
    pointers: Any  # what `address` points to: kept alive
    address: int
    stream: int = -1


def _packed(ptx_type: str, value: Any, name: str) -> bytes:
    try:
        form, bits = _FORMATS[ptx_type]
    except KeyError:
        raise LaunchError(f"{name}: jitd cannot pass a .{ptx_type} parameter.") from None
    # PTX has no signed parameters: a negative integer is passed as its two's complement.
    return struct.pack(form, value & ((1 << bits) - 1) if bits else value)
