"""How kernels address what a call gives them: tokens, and the scale, shift or gate beside them.

`modulation.py` says how an operand may lie; `kernels/operands.py` loads it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ...jit.declare import Argument, Pointer
from ...jit.sign import ITEM_BYTES, Call, TensorSpec
from .group_norm_problem import VECTOR_BYTES, common_power_of_two


@dataclass(frozen=True)
class Operand:
    """Where the row of a token begins: at sample * sample_stride + row * row_stride.

    mode    "none": there is no operand. "batch": row 0. "row": token // period. "index": the row
            that the call's index names. It follows from the operand's shape alone, never from its
            strides, so that a bucket has one
    vec     divides its strides and its width, 16 bytes of x at most
    copied  its channels are not innermost: the plan makes it contiguous first
    """

    mode: str = "none"
    sample_stride: int = 0
    row_stride: int = 0
    period: int = 1
    vec: int = VECTOR_BYTES
    copied: bool = False


def operand_of(call: Call, name: str) -> Operand:
    """The operand of that name in a checked call whose x is (B, S, D)."""
    spec: TensorSpec | None = call.get(name)
    if spec is None:
        return Operand()
    copied = not _channels_innermost(spec)
    strides = TensorSpec(spec.dtype, spec.shape).strides if copied else spec.strides
    # A dimension of size 1 broadcasts: whatever its stride, its only row serves all.
    strides = tuple(0 if n == 1 else s for n, s in zip(spec.shape, strides, strict=True))
    sample, row, period, mode = 0, 0, 1, "batch"
    match len(spec.shape):
        case 2 if call["index"] is not None:
            row, mode = strides[0], "index"
        case 2:
            sample = strides[0]
        case 3:
            sample = strides[0]
            if spec.shape[1] != 1:
                row, period, mode = strides[1], call.x.shape[1] // spec.shape[1], "row"
    vec = common_power_of_two(_widest(call.x), spec.shape[-1], sample, row)
    return Operand(mode, sample, row, period, vec, copied)


def operand_args(call: Call, name: str) -> dict[str, Argument]:
    """The arguments of a kernel for one operand: `gate`, `gate_b`, `gate_r`, `gate_p`, `GATE`."""
    operand = operand_of(call, name)
    return {
        name: None if operand.mode == "none" else Pointer(name),
        f"{name}_b": operand.sample_stride,
        f"{name}_r": operand.row_stride,
        f"{name}_p": operand.period,
        name.upper(): operand.mode,
    }


def index_args(call: Call, operands: Sequence[str]) -> dict[str, Argument]:
    """The arguments of a kernel for the index: `index`, `index_b`, `index_s`, `INDEXED`.

    An index beside operands none of which is a table is not read.
    """
    indexed = any(operand_of(call, name).mode == "index" for name in operands)
    sample, token = call.index.strides if indexed else (0, 0)
    pointer = Pointer("index") if indexed else None
    return {"index": pointer, "index_b": sample, "index_s": token, "INDEXED": indexed}


def token_args(call: Call, name: str) -> dict[str, Argument]:
    """The arguments of a kernel for tokens (B, S, D): `x`, `x_b`, `x_s`."""
    sample, token = _token_strides(call[name])
    return {name: Pointer(name), f"{name}_b": sample, f"{name}_s": token}


def copied_first(call: Call, tokens: Sequence[str], operands: Sequence[str]) -> tuple[str, ...]:
    """Which inputs a plan makes contiguous first: those whose channels are not innermost."""
    names = [name for name in (*tokens, *operands) if call.get(name) is not None]
    return tuple(name for name in names if not _channels_innermost(call[name]))


def vector_width(call: Call, tokens: Sequence[str], operands: Sequence[str]) -> int:
    """VEC of a call: what the width of a row allows if all strides do, else 1.

    All or nothing, so that strides make no more than two classes of binaries of a bucket.
    """
    x: TensorSpec = call.x
    widest = common_power_of_two(_widest(x), x.shape[-1])
    strides = [stride for name in tokens for stride in _token_strides(call[name])]
    fits = common_power_of_two(widest, *strides) == widest
    return widest if fits and all(operand_of(call, n).vec >= widest for n in operands) else 1


def _widest(x: TensorSpec) -> int:
    """Elements of a tile's widest load: 16 bytes of x."""
    return VECTOR_BYTES // ITEM_BYTES[x.dtype]


def _token_strides(spec: TensorSpec) -> tuple[int, int]:
    """Strides of samples and tokens as the kernel sees them."""
    if not _channels_innermost(spec):
        spec = TensorSpec(spec.dtype, spec.shape)
    batch, tokens, _ = (
        0 if size == 1 else stride for size, stride in zip(spec.shape, spec.strides, strict=True)
    )
    return batch, tokens


def _channels_innermost(spec: TensorSpec) -> bool:
    return spec.strides[-1] == 1 or spec.shape[-1] == 1
