"""The binary key: what one compiled binary depends on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..cache.keys import Key
from .declare import Argument, Launch, Pointer, check_launch
from .errors import DeclarationError
from .sign import Passed, Scalar, TensorSpec
from .source import Parameter

SCHEMA = 1  # raised when jitd compiles or launches the same kernel differently

Class = tuple[Any, ...]

_FLOATS = ("fp64", "fp32", "fp16", "bf16")  # annotations that fix the type of an argument


@dataclass(frozen=True)
class Binary:
    """One binary to be had: everything that decides its bytes.

    `classes` gives each parameter's argument class, `options` what Triton's compiler takes. `op`
    is the op that asks for it, for listing and clearing: it decides nothing.
    """

    module: str
    kernel: str
    source_digest: str
    classes: tuple[tuple[str, Class], ...]
    options: tuple[tuple[str, Scalar], ...]
    target: str
    toolchain: str
    op: str = field(default="", compare=False)

    @property
    def key(self) -> Key:
        """The key of the artifact. The module's name is no part: code that moves is the same."""
        return Key.of(
            "artifact",
            self.kernel,
            schema=SCHEMA,
            source=self.source_digest,
            classes=self.classes,
            options=self.options,
            target=self.target,
            toolchain=self.toolchain,
        )

    def request(self) -> dict[str, Any]:
        """What a compile worker is asked."""
        return {
            "kernel": [self.module, self.kernel],
            "classes": {name: list(kind) for name, kind in self.classes},
            "options": dict(self.options),
            "target": int(self.target.removeprefix("sm_")),
        }

    def __str__(self) -> str:
        return f"{self.kernel} for {self.target}"


def binary_of(
    launch: Launch,
    tensors: Mapping[str, TensorSpec],
    target: str,
    toolchain: str,
    op: str = "",
) -> Binary:
    """The binary that `launch` needs when its pointers stand for `tensors`."""
    check_launch(launch)
    source = launch.kernel.source
    classes = tuple(
        (p.name, argument_class(p, launch.args[p.name], tensors)) for p in source.parameters
    )
    options: dict[str, Scalar] = {
        "num_warps": launch.num_warps,
        "num_stages": launch.num_stages,
        "enable_fp_fusion": launch.fp_fusion,
    }
    return Binary(
        module=launch.kernel.module,
        kernel=launch.kernel.name,
        source_digest=source.digest,
        classes=classes,
        options=tuple(sorted(options.items())),
        target=target,
        toolchain=toolchain,
        op=op,
    )


def argument_class(
    parameter: Parameter, value: Argument, tensors: Mapping[str, TensorSpec]
) -> Class:
    """The class into which Triton puts an argument (facts: Triton 3.6 to 3.9, runtime/jit.py).

    A pointer: dtype and 16-byte alignment. An integer: its width by magnitude, and, unless the
    parameter is `do_not_specialize`, whether it is 1 or a multiple of 16. A float: nothing, its
    value is never looked at. Whatever number is given for a parameter annotated as a float is one
    of that type (and, of tl.float64, keeps its digits). A constexpr: its value.
    """
    if parameter.constexpr:
        if isinstance(value, Pointer | Passed):
            kind = "pointer" if isinstance(value, Pointer) else "float that varies"
            raise DeclarationError(f"{parameter.name} is a constexpr, but is given a {kind}.")
        return ("constexpr", value)
    if parameter.annotation in _FLOATS and isinstance(value, bool | int | float | Passed):
        return ("float",)
    match value:
        case None:
            return ("none",)
        case Pointer(name):
            spec = tensors[name]
            return ("pointer", spec.dtype, spec.aligned and parameter.align)
        case bool():
            return ("bool",)
        case int():
            return _integer_class(parameter, value)
        case float() | Passed():
            return ("float",)
    raise DeclarationError(f"{parameter.name}: a {type(value).__name__} is no runtime argument.")


def _integer_class(parameter: Parameter, value: int) -> Class:
    if parameter.annotation in ("i64", "u64", "i32", "u32"):
        width = "i64" if parameter.annotation.endswith("64") else "i32"
    elif -(1 << 31) <= value < 1 << 31:
        width = "i32"
    else:
        width = "i64" if value < 1 << 63 else "u64"
    if not parameter.specialize:
        return ("int", width, "")
    if value == 1:
        return ("int", width, "1")
    return ("int", width, "16" if parameter.align and value % 16 == 0 else "")
