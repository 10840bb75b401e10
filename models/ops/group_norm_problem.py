"""What the variants of GroupNorm + SiLU see of a call: sizes, widths, the residual's view."""

from dataclasses import dataclass
from math import ceil, prod

from ...jit.sign import ITEM_BYTES, Call, TensorSpec

VECTOR_BYTES = 16  # the widest load of a thread


@dataclass(frozen=True)
class Residual:
    """How a kernel addresses the residual.

    `mode` "none"; "same": as x is laid out; "strided": element (n, c, p) is at
    n*batch + c*channel + (p // inner)*outer + p % inner. `vec` divides inner and all strides.
    """

    mode: str
    inner: int = 1
    outer: int = 0
    channel: int = 0
    batch: int = 0
    vec: int = 1


@dataclass(frozen=True)
class GroupNormProblem:
    """A call as the kernels take it: x as (N, C, P), P positions, in G groups of D channels."""

    N: int
    C: int
    P: int
    G: int
    channels_last: bool
    vec: int  # divides every run of positions (of channels in channels_last), 16 bytes at most
    residual: Residual
    copied: tuple[str, ...]  # arguments that are made contiguous first, as aten does

    @property
    def D(self) -> int:
        return self.C // self.G

    @property
    def rows(self) -> int:
        return self.N * self.G

    @property
    def row_elements(self) -> int:
        return self.D * self.P

    @property
    def bucket_P(self) -> int:
        """The largest P of this P's bucket; what constexprs may be derived from.

        With a strided residual at least 64, so that a bucket has room for several frames.
        """
        step = quarter_step(self.P)
        return max(64, step) if self.residual.mode == "strided" else step

    @property
    def shortest_P(self) -> int:
        """The smallest P of this P's bucket."""
        longest = self.bucket_P
        if longest <= 4:
            return longest
        if longest == 64 and self.residual.mode == "strided":
            return 1
        return longest - (1 << ((longest - 1).bit_length() - 3)) + 1


def problem_of(call: Call) -> GroupNormProblem:
    """The problem that a checked, non-empty call poses."""
    x: TensorSpec = call.x
    n, c, *spatial = x.shape
    positions = prod(spatial)
    channels_last = x.layout.startswith("channels_last")
    copied = () if channels_last or x.layout == "contiguous" else ("x",)
    copied += tuple(n for n in ("weight", "bias") if call[n].layout != "contiguous")
    widest = VECTOR_BYTES // ITEM_BYTES[x.dtype]
    vec = common_power_of_two(widest, c if channels_last else positions)
    residual = Residual("none")
    if "residual" in call:
        beside = "channels_last" if channels_last else "contiguous"
        view = _view(call.residual, beside, vec)
        if view is None:
            copied += ("residual",)
            view = _view(call.residual.like(strides=()), beside, vec)
        residual = view or residual  # a contiguous tensor always has a view
    return GroupNormProblem(
        N=n,
        C=c,
        P=positions,
        G=call.groups,
        channels_last=channels_last,
        vec=vec,
        residual=residual,
        copied=copied,
    )


def _view(spec: TensorSpec, x_layout: str, vec: int) -> Residual | None:
    """The kernels' view of a residual beside an x of that layout; None if there is none."""
    layout = "channels_last" if spec.layout.startswith("channels_last") else spec.layout
    if layout == x_layout:
        return Residual("same", vec=vec)
    batch, channel, *strides = spec.strides
    # Spatial dimensions from the right: a dense run of `inner`, then one common stride.
    sizes = [(n, s) for n, s in zip(spec.shape[2:], strides, strict=True) if n != 1]
    inner, outer = 1, 0
    while sizes and sizes[-1][1] == inner:
        inner *= sizes.pop()[0]
    if sizes:
        outer = sizes[-1][1]
        expected = outer
        for size, stride in reversed(sizes):
            if stride != expected:
                return None
            expected = stride * size
    width = common_power_of_two(vec, inner, outer, channel, batch)
    return Residual("strided", inner, outer, channel, batch, width)


def common_power_of_two(most: int, *numbers: int) -> int:
    """The largest power of two up to `most` that divides all numbers."""
    while most > 1 and any(number % most for number in numbers):
        most //= 2
    return most


def next_power_of_two(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()


def quarter_step(number: int) -> int:
    """The next of 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, …: four steps to a power of two."""
    if number <= 4:
        return max(1, number)
    step = 1 << ((number - 1).bit_length() - 3)
    return ceil(number / step) * step


def round_up(number: int, multiple: int) -> int:
    return ceil(number / multiple) * multiple
