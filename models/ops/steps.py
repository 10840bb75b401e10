"""Steps of a sampler over latents: from what a model predicts to the latents of the next sigma.

Coefficients are floats that vary, or, so that one captured step serves a whole schedule, rows of
`table`, a tensor on the device of which `step`, a tensor of one integer, names one. Then noise may
be that of all steps, (steps, *x.shape). What the rows mean is said at each op;
`models/ltx2/denoising/coefficients.py` makes those of res_2s.

Everything is elementwise and over tensors of one shape, each of bf16|fp16|fp32|fp64; results are
contiguous and of x's dtype. R rounds to it. Raises ValueError for what does not fit.
"""

import torch
from torch import Tensor

from ...jit.declare import Cost
from ...jit.op import op
from ...jit.sign import Call, TensorSpec
from .flat_calls import (
    alike,
    bucket_flat,
    check_alike,
    probe_flat,
    reach_flat,
    smaller_flat,
    stacked,
)
from .modulation import wide
from .steps_variants import EULER, MIDPOINT, STEP

COEFFICIENTS = 8
"""Numbers in a row of the table of res_2s: those of `res2s_step`, in its order."""

_INDICES = ("i32", "i64")


def _like_x(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _out(call: Call) -> dict[str, TensorSpec]:
    return {"out": TensorSpec(call.x.dtype, call.x.shape)}


def _cost(call: Call) -> Cost:
    read = sum(
        spec.nbytes // (spec.shape[0] if stacked(call, name) else 1)
        for name, spec in alike(call).items()
    )
    return Cost(bytes=read + call.x.nbytes, flops=10 * call.x.numel)


def _check_table(name: str, call: Call, shape: tuple[int | None, ...]) -> None:
    """Raise ValueError unless table and step are both given and fit, or neither is."""
    table: TensorSpec | None = call.table
    step: TensorSpec | None = call.step
    if (table is None) != (step is None):
        raise ValueError(f"{name}: table and step go together; give both or neither.")
    if table is None or step is None:
        return
    fits = len(table.shape) == len(shape) and all(
        want in (None, size) for want, size in zip(shape, table.shape, strict=True)
    )
    if table.dtype != "fp64" or not fits or table.layout != "contiguous":
        rows = ", ".join("steps" if size is None else str(size) for size in shape)
        raise ValueError(
            f"{name}: table is {table.dtype} {table.shape}; allowed is fp64 ({rows}), contiguous."
        )
    if step.dtype not in _INDICES or step.numel != 1:
        raise ValueError(
            f"{name}: step is {step.dtype} {step.shape}; allowed is one number, i32 or i64."
        )


def _check_euler(call: Call) -> None:
    check_alike("euler_step", call, ["x", "x0"])
    _check_table("euler_step", call, (None,))
    if call.table is not None and call.table.shape[0] < 2:
        raise ValueError(
            f"euler_step: table is {call.table.shape}; allowed are two sigmas or more."
        )


def _check_midpoint(call: Call) -> None:
    check_alike("res2s_midpoint", call, ["x", "x0"], stacks=["noise"])
    _check_table("res2s_midpoint", call, (None, COEFFICIENTS))


def _check_step(call: Call) -> None:
    check_alike("res2s_step", call, ["x", "x0", "x0_mid"], stacks=["noise_mid", "noise"])
    _check_table("res2s_step", call, (None, COEFFICIENTS))
    both = [stacked(call, n) for n in ("noise_mid", "noise") if call[n] is not None]
    if len(set(both)) > 1:
        raise ValueError("res2s_step: one noise is of all steps, one of this; give both alike.")


def _bucket(call: Call) -> Call:
    """As `bucket_flat`, and with a table of few rows: how many there are decides nothing."""
    call = bucket_flat(call)
    table: TensorSpec | None = call.table
    if table is None:
        return call
    stacks = {n: (_ROWS, *s.shape[1:]) for n, s in alike(call).items() if stacked(call, n)}
    shapes = {**stacks, "table": (_ROWS, *table.shape[1:]), "step": (1,)}
    return call.replace(**{n: TensorSpec(call[n].dtype, shape) for n, shape in shapes.items()})


_ROWS = 16  # of the table of a bucket

_RULES = {
    "outputs": _out,
    "fake": _like_x,
    "cost": _cost,
    "bucket": _bucket,
    "reach": reach_flat,
    "probes": probe_flat,
    "smaller": lambda call: smaller_flat(call, _bucket),
}


def _like(call: Call) -> TensorSpec:
    return TensorSpec(call.x.dtype, call.x.shape)


@op(
    **_RULES,
    variants=[EULER],
    check=_check_euler,
    implied={"x0": _like},
    varies={"sigma": 0.725, "sigma_next": 0.421875},
    below={"step": lambda call: call.table.shape[0] - 1},
)
def euler_step(
    x: Tensor,
    x0: Tensor,
    sigma: float = 1.0,
    sigma_next: float = 0.0,
    table: Tensor | None = None,
    step: Tensor | None = None,
) -> Tensor:
    """R(x + v * (sigma_next - sigma)) with v = R((x - x0) / sigma), computed in fp32.

    The table is the schedule, (steps + 1,) in fp64: sigma is table[step], sigma_next the next.
    """
    if table is not None and step is not None:
        at = step.reshape(1).long()
        now, behind = table.index_select(0, at), table.index_select(0, at + 1)
        divisor, change = (t.to(wide(x).dtype) for t in (now, behind - now))
    else:
        # A tensor: CUDA would multiply by the reciprocal of a number.
        divisor, change = wide(x).new_full((), sigma), sigma_next - sigma
    v = ((wide(x) - wide(x0)) / divisor).to(x.dtype)
    return (wide(x) + wide(v) * change).to(x.dtype).contiguous()


@op(
    **_RULES,
    variants=[MIDPOINT],
    check=_check_midpoint,
    implied={"x0": _like, "noise": _like},
    varies={"alpha": 0.93, "move": 0.41, "up": 0.35},
    below={"step": lambda call: call.table.shape[0]},
)
def res2s_midpoint(
    x: Tensor,
    x0: Tensor,
    noise: Tensor | None,
    alpha: float = 1.0,
    move: float = 0.0,
    up: float = 0.0,
    table: Tensor | None = None,
    step: Tensor | None = None,
) -> Tensor:
    """R(alpha * (x + move * (x0 - x)) + up * noise) in fp64: where res_2s asks the model again.

    It is the first stage of the step and its SDE sub-step in one. Without noise nothing is added.
    The coefficients are the first three of a row of the table.
    """
    if table is not None and step is not None:
        row = table.index_select(0, step.reshape(1).long())[0]
        alpha, move, up = row[:3].unbind()
        noise = _noise_of(noise, step, x)
    return _midpoint(x, x0, noise, alpha, move, up).to(x.dtype).contiguous()


@op(
    **_RULES,
    variants=[STEP],
    check=_check_step,
    implied={"x0": _like, "x0_mid": _like, "noise_mid": _like, "noise": _like},
    varies={
        "alpha_mid": 0.93, "move_mid": 0.41, "up_mid": 0.35, "bong": 0.12,
        "alpha": 0.88, "first": 0.21, "second": 0.53, "up": 0.33,
    },
    below={"step": lambda call: call.table.shape[0]},
)  # fmt: skip
def res2s_step(
    x: Tensor,
    x0: Tensor,
    x0_mid: Tensor,
    noise_mid: Tensor | None,
    noise: Tensor | None,
    alpha_mid: float = 1.0,
    move_mid: float = 0.0,
    up_mid: float = 0.0,
    bong: float = 0.0,
    alpha: float = 1.0,
    first: float = 0.0,
    second: float = 0.0,
    up: float = 0.0,
    table: Tensor | None = None,
    step: Tensor | None = None,
) -> Tensor:
    """R(alpha * (a + first * (x0 - a) + second * (x0_mid - a)) + up * noise) in fp64: the latents
    after a step of res_2s.

    a, the anchor, is x, or, if `bong` is not 0, mid + bong * (mid - x0): what its hundred
    refinements (x <- mid - k * (x0 - x), with bong = k / (1 - k)) come to. mid is the value that
    `res2s_midpoint` rounds, computed again from the same arguments. x0 and x0_mid are what the
    model predicts at x and at the midpoint. The arguments are a row of the table, in their order.
    """
    row: tuple[float | Tensor, ...]
    row = (alpha_mid, move_mid, up_mid, bong, alpha, first, second, up)
    refined = torch.tensor(bong != 0.0, device=x.device) if table is None else None
    if table is not None and step is not None:
        row = table.index_select(0, step.reshape(1).long())[0].unbind()
        refined = row[3] != 0
        noise_mid, noise = _noise_of(noise_mid, step, x), _noise_of(noise, step, x)
    mid = _midpoint(x, x0, noise_mid, *row[:3])
    d, anchor = x0.double(), torch.where(refined, mid + row[3] * (mid - x0.double()), x.double())
    result = row[4] * (anchor + row[5] * (d - anchor) + row[6] * (x0_mid.double() - anchor))
    if noise is not None:
        result = result + row[7] * noise.double()
    return result.to(x.dtype).contiguous()


def _midpoint(
    x: Tensor,
    x0: Tensor,
    noise: Tensor | None,
    alpha: float | Tensor,
    move: float | Tensor,
    up: float | Tensor,
) -> Tensor:
    """The midpoint in fp64."""
    x = x.double()
    mid = alpha * (x + move * (x0.double() - x))
    return mid if noise is None else mid + up * noise.double()


def _noise_of(noise: Tensor | None, step: Tensor, x: Tensor) -> Tensor | None:
    """That of the step, if noise is that of all."""
    if noise is None or noise.ndim == x.ndim:
        return noise
    return noise.index_select(0, step.reshape(1).long())[0]
