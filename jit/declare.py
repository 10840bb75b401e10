"""What a kernel, a launch, a plan and a variant are: declarations, as plain data.

Declaring imports neither torch nor Triton. A kernel is named by module and function, so that
anybody can declare kernels and ops of their own, in their own package.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

from ..autotune.space import Space
from .errors import DeclarationError
from .sign import Call, Passed, Scalar, TensorSpec
from .source import FunctionSource, function_source


@dataclass(frozen=True)
class Kernel:
    """One Triton function, by name: `Kernel("mypackage.kernels", "add_kernel")`."""

    module: str
    name: str

    @property
    def source(self) -> FunctionSource:
        """Digest and parameters, read from the file. Raises DeclarationError."""
        return function_source(self.module, self.name)

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True)
class Device:
    """The card that code is tuned on, or, with no `uuid`, a stand-in for compiling only."""

    name: str  # "NVIDIA H200"
    target: str  # "sm_90"
    sm_count: int
    memory_bytes: int
    max_shared_bytes: int
    uuid: str = ""
    driver: str = ""
    index: int = 0

    def __str__(self) -> str:
        return f"{self.name} ({self.target}, {self.sm_count} SMs)"


@dataclass(frozen=True)
class Pointer:
    """A kernel argument that is the address of an input, an output or a workspace, by name."""

    name: str


@dataclass(frozen=True)
class Workspace:
    """Memory that a plan needs besides its outputs.

    With `zeroed` it is a buffer of one entry and stream that is zero before its first launch and
    that every launch must leave ready for the next one (barrier counters); a captured graph gets
    its own. Otherwise its contents are undefined and last for one call.
    """

    dtype: str
    numel: int
    zeroed: bool = False

    @property
    def spec(self) -> TensorSpec:
        return TensorSpec(self.dtype, (self.numel,))


Argument: TypeAlias = Pointer | Passed | Scalar


@dataclass(frozen=True)
class Launch:
    """One kernel launch: every parameter of the kernel by name, constexprs included.

    `cooperative`: all programs must be resident at once (a barrier between them); refused by the
    driver where they do not fit, never hung. `dependent`: may start before the launch in front of
    it has finished (programmatic dependent launch); the kernel itself must wait.
    """

    kernel: Kernel
    grid: tuple[int, int, int]
    args: Mapping[str, Argument]
    num_warps: int = 4
    num_stages: int = 3
    cooperative: bool = False
    dependent: bool = False
    fp_fusion: bool = False


@dataclass(frozen=True)
class Plan:
    """How one call is computed: outputs, workspaces, launches in order.

    `contiguous` names inputs that are copied to contiguous memory first, as aten does.
    """

    outputs: Mapping[str, TensorSpec]
    launches: Sequence[Launch]
    workspaces: Mapping[str, Workspace] = field(default_factory=dict)
    contiguous: tuple[str, ...] = ()


Params: TypeAlias = dict[str, Any]
Planner: TypeAlias = Callable[[Call, Params, Device], Plan]


@dataclass(frozen=True)
class Problem:
    """What a space's predicate and default may look at."""

    call: Call
    device: Device


@dataclass(frozen=True)
class Variant:
    """One way to compute an op.

    `plan(call, params, device) -> Plan` is pure: it is called with specs, on machines without a
    GPU too. `applies(call)` gives None or the reason why the variant cannot compute that call.
    `gpu_only` variants hang in the interpreter (a barrier between programs).
    """

    name: str
    plan: Planner
    space: Space
    applies: Callable[[Call], str | None] = lambda call: None
    gpu_only: bool = False

    @cached_property
    def digest(self) -> str:
        """Digest of the launch code and what it reaches."""
        return function_source(self.plan.__module__, self.plan.__qualname__).digest


@dataclass(frozen=True)
class Config:
    """A variant and its parameters: one point of the op's whole space."""

    variant: Variant
    params: Mapping[str, Any]

    @property
    def name(self) -> str:
        inner = ", ".join(f"{k}={v}" for k, v in self.params.items())
        return f"{self.variant.name}({inner})"

    def plan(self, call: Call, device: Device) -> Plan:
        return self.variant.plan(call, dict(self.params), device)

    def digest(self, call: Call, device: Device) -> str:
        """Digest of the launch code and of the kernels it launches; a timing carries it, so that
        changing one variant invalidates no timing of another.
        """
        kernels = {launch.kernel.source.digest for launch in self.plan(call, device).launches}
        text = " ".join([self.variant.digest, *sorted(kernels)])
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Cost:
    """What must be moved and computed at the least: each input read once, each output written."""

    bytes: int
    flops: int = 0


def check_launch(launch: Launch) -> None:
    """Raise DeclarationError if the arguments of a launch are not those of its kernel."""
    declared = [p.name for p in launch.kernel.source.parameters]
    given = list(launch.args)
    if set(given) != set(declared):
        missing, unknown = set(declared) - set(given), set(given) - set(declared)
        raise DeclarationError(
            f"launch of {launch.kernel}: missing {sorted(missing)}, unknown {sorted(unknown)}. "
            f"Its parameters are {declared}."
        )
    for name, value in launch.args.items():
        if not isinstance(value, Pointer | Passed | bool | int | float | str | None):
            raise DeclarationError(
                f"launch of {launch.kernel}: {name} is a {type(value).__name__}. Allowed are "
                "Pointer, Passed, bool, int, float, str and None; tensor descriptors and tuples "
                "are not."
            )
