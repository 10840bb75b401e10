"""What a model does besides matrix products: bytes that its other kernels move, and launches."""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ...jit.tensors import spec_of
from ...models.ops.modulation import moved_bytes

# Operators whose time is that of a matrix product or of attention, by the beginning of their names.
_PRODUCTS = re.compile(
    r"(mm|addmm|_addmm_activation|bmm|baddbmm|linear|mkldnn_linear|_scaled_mm|convolution|"
    r"_?scaled_dot_product\w*|_?flash_attention\w*|_?efficient_attention\w*)$"
)
# The same of kernels. cuBLAS calls its own nvjet, gemm, splitK; cuDNN's attention has "sdpa".
# Inductor calls a kernel after the operators it came from, as the copy in front of attention.
_PRODUCT_KERNELS = re.compile(
    r"(?!triton_(poi|red|per)_)"
    r".*(gemm|nvjet|cutlass|splitk|cublas|flash|fmha|sdpa|attention|fprop|convolve)",
    re.I | re.S,
)
# What only makes a tensor: nothing is read or written.
_NO_WORK = re.compile(r"(empty\w*|new_empty\w*|_unsafe_view|detach|alias|lift_fresh)$")


class Traffic(TorchDispatchMode):  # type: ignore[misc]
    """Counts, while open, the bytes of operators other than products: each tensor that one reads
    and each that it writes, once. What a broadcast reads again counts once.

    As costs are counted, not as caches see it; an operator is one kernel, or more.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()
        self.paused = False

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if not (self.paused or function.is_view or _PRODUCTS.match(name) or _NO_WORK.match(name)):
            self.bytes[name] += _bytes((args, kwargs or {})) + _bytes(result)
        return result


class _WithoutAttention(TorchFunctionMode):  # type: ignore[misc]
    """Has attention not counted, whatever it is made of: matrix products on some devices."""

    def __init__(self, traffic: Traffic) -> None:
        super().__init__()
        self._traffic = traffic

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self._traffic.paused = function is F.scaled_dot_product_attention
        try:
            return function(*args, **(kwargs or {}))
        finally:
            self._traffic.paused = False


def _bytes(values: Any) -> int:
    tensors = [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]
    return moved_bytes({str(id(tensor)): spec_of(tensor) for tensor in tensors})


def traffic(run: Callable[[], object]) -> Counter[str]:
    """Bytes moved by the operators of one call other than matrix products, by operator."""
    counted = Traffic()
    with counted, _WithoutAttention(counted):
        run()
    return counted.bytes


@dataclass(frozen=True)
class Launched:
    """What one call launched, copies and fills included: by kernel's name, how often, and for how
    many microseconds on the device.
    """

    counts: Counter[str]
    us: Mapping[str, float]

    @property
    def products(self) -> int:
        """How many were matrix products or attention."""
        return sum(count for name, count in self.counts.items() if _PRODUCT_KERNELS.match(name))

    @property
    def other_us(self) -> float:
        """How long the device was busy with all others."""
        return sum(us for name, us in self.us.items() if not _PRODUCT_KERNELS.match(name))


def launches(run: Callable[[], object]) -> Launched:
    """Kernels that one call launches, as torch's profiler sees them."""
    run()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        run()
        torch.cuda.synchronize()
    counts: Counter[str] = Counter()
    us: dict[str, float] = {}
    for event in profile.events():
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation:
            counts[event.name] += 1
            us[event.name] = us.get(event.name, 0.0) + event.device_time
    return Launched(counts, us)
