"""RMSNorm and LayerNorm of tokens, with what stands around them in a transformer block: the gated
residual in front, one or two modulations behind, or a gate and the residual behind.

    residual = x + y * gate          n = norm(residual) [* weight] [+ bias]
    out      = n * (1 + scale) + shift,   and a second one from the same n

`modulation.py` says how scale, shift and gate may lie, and what `rounding` means. An op that
returns the residual, too, returns it first. Statistics are fp32, but for rounding="native". Results
are contiguous. Rows have up to 16384 elements.

Sites: every norm of LTX-2's DiT, Helios and Z-Image. SGLang's modules `LayerNormScaleShift` and
`RMSNormScaleShift`, over `layer_norm_modulate` and `rms_norm_modulate`, are in `models/norms.py`.
"""

import torch
from torch import Tensor

from ...jit.op import op
from .modulation import gated
from .row_norm_eager import layer_normed, rms_normed, scaled, shifted, tanh_gated
from .row_norm_rules import ADDED, GATED, NATIVE, SCALE, SECOND, per_sample, rules
from .row_norm_variants import AFTER, LAYER, MODULATE, RMS


def _inductor_fuses(x: Tensor, *_: object) -> bool:
    """fp32 rows: nothing is rounded on the way, so Inductor's fusion has the kernel's traffic and
    bits as good, and joins what stands beside the norm to it. A rule of the dtype alone: one of a
    length would make compiled code guard on it.

    Measured (README.md beside this): as fast alone, twice as fast between pointwise operations;
    sgl-project/sglang#20962 found the same in Z-Image's caption embedder.
    """
    return x.dtype == torch.float32


@op(**rules("rms_norm", RMS, roundings=NATIVE, lowers=_inductor_fuses))
def rms_norm(
    x: Tensor,
    weight: Tensor | None = None,
    eps: float = 1e-6,
    *,
    rounding: str = "each",
    numerics: str = "exact",
) -> Tensor:
    """x / sqrt(mean(x²) + eps) [* weight], over the last dimension.

    x: (…, D), bf16|fp16|fp32; weight: (D,) or None. `rounding="each"` is diffusers' RMSNorm,
    R(R(x * rstd) * weight); "once" is torch.nn.RMSNorm, R(x * rstd * weight), with a weight of any
    dtype; without a weight these are one. "native" has its statistics in x's dtype, too: R of x²,
    of their mean, of mean + eps, and of rstd. Raises ValueError for what does not fit.
    """
    return rms_normed(x, weight, eps, rounding).to(x.dtype).contiguous()


@op(**rules("rms_norm_modulate", RMS, **SCALE))
def rms_norm_modulate(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    weight: Tensor | None = None,
    index: Tensor | None = None,
    eps: float = 1e-6,
    *,
    rounding: str = "each",
    numerics: str = "exact",
) -> Tensor:
    """rms_norm(x) * (1 + scale) + shift.

    x: (B, S, D), bf16|fp16|fp32; scale and shift of one shape, see `modulation.py`; index: (B, S)
    of i32|i64, rows of 2-dimensional scale and shift (it must lie within them: a GPU does not
    check, unless JITD_DEBUG=1); weight: (D,) or None. Raises ValueError for what does not fit.
    """
    n = rms_normed(x, weight, eps, rounding)
    return shifted(n, x, scale, shift, index, rounding).contiguous()


@op(**rules("rms_norm_scale", RMS, roundings=NATIVE, scale=per_sample))
def rms_norm_scale(
    x: Tensor,
    scale: Tensor,
    weight: Tensor | None = None,
    index: Tensor | None = None,
    eps: float = 1e-6,
    *,
    rounding: str = "each",
    numerics: str = "exact",
) -> Tensor:
    """rms_norm(x) * scale, the scale as it is: Z-Image's, which is 1 + s before it comes here.

    As `rms_norm_modulate` without a shift: `each` is R(R(R(x * rstd) * weight) * scale). "native"
    as in `rms_norm`.
    """
    n = rms_normed(x, weight, eps, rounding)
    return scaled(n, x, scale, index, rounding).contiguous()


@op(**rules("tanh_gate_residual_rms_norm", AFTER, roundings=NATIVE, **ADDED))
def tanh_gate_residual_rms_norm(
    x: Tensor,
    y: Tensor,
    gate: Tensor | None = None,
    weight: Tensor | None = None,
    index: Tensor | None = None,
    eps: float = 1e-6,
    *,
    rounding: str = "each",
    numerics: str = "exact",
) -> Tensor:
    """x + tanh(gate) * rms_norm(y); without a gate x + rms_norm(y).

    As `rms_norm_modulate`; y: as x. `each` is R(x + R(R(tanh(gate)) * R(R(y * rstd) * weight))), a
    block of Z-Image. "native" as in `rms_norm`.
    """
    n = rms_normed(y, weight, eps, rounding)
    return tanh_gated(x, n, gate, index, rounding).contiguous()


@op(**rules("rms_norm_dual_modulate", RMS, 2, **SCALE, **SECOND))
def rms_norm_dual_modulate(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    scale2: Tensor,
    shift2: Tensor,
    weight: Tensor | None = None,
    index: Tensor | None = None,
    eps: float = 1e-6,
    *,
    rounding: str = "each",
    numerics: str = "exact",
) -> tuple[Tensor, Tensor]:
    """One norm, two modulations: as `rms_norm_modulate` with scale and shift, and with scale2 and
    shift2, which may lie otherwise.
    """
    n = rms_normed(x, weight, eps, rounding)
    return (
        shifted(n, x, scale, shift, index, rounding).contiguous(),
        shifted(n, x, scale2, shift2, index, rounding).contiguous(),
    )


@op(**rules("gate_residual_rms_norm_modulate", RMS, 2, **GATED))
def gate_residual_rms_norm_modulate(
    x: Tensor,
    y: Tensor,
    gate: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    weight: Tensor | None = None,
    index: Tensor | None = None,
    eps: float = 1e-6,
    *,
    rounding: str = "each",
    numerics: str = "exact",
) -> tuple[Tensor, Tensor]:
    """(residual, rms_norm(residual) * (1 + scale) + shift), where residual = x + y * gate.

    As `rms_norm_modulate`; y: as x; without a gate residual = x + y, without scale and shift the
    second result is the norm alone. The residual is rounded to x's dtype before it is normalised.
    """
    residual = gated(x, y, gate, index, rounding).contiguous()
    n = rms_normed(residual, weight, eps, rounding)
    return residual, shifted(n, x, scale, shift, index, rounding).contiguous()


@op(**rules("gate_residual_rms_norm_dual_modulate", RMS, 3, **GATED, **SECOND))
def gate_residual_rms_norm_dual_modulate(
    x: Tensor,
    y: Tensor,
    gate: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    scale2: Tensor,
    shift2: Tensor,
    weight: Tensor | None = None,
    index: Tensor | None = None,
    eps: float = 1e-6,
    *,
    rounding: str = "each",
    numerics: str = "exact",
) -> tuple[Tensor, Tensor, Tensor]:
    """(residual, and its norm in two modulations): `gate_residual_rms_norm_modulate` with the
    second modulation of `rms_norm_dual_modulate`.
    """
    residual = gated(x, y, gate, index, rounding).contiguous()
    n = rms_normed(residual, weight, eps, rounding)
    return (
        residual,
        shifted(n, x, scale, shift, index, rounding).contiguous(),
        shifted(n, x, scale2, shift2, index, rounding).contiguous(),
    )


@op(**rules("layer_norm_modulate", LAYER, **SCALE))
def layer_norm_modulate(
    x: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    index: Tensor | None = None,
    eps: float = 1e-6,
    *,
    rounding: str = "each",
    numerics: str = "exact",
) -> Tensor:
    """layer_norm(x) * (1 + scale) + shift; without scale and shift the norm alone.

    As `rms_norm_modulate`; weight, bias: (D,) or None, of any dtype, applied before the first
    rounding. The variance is that of the distances to the mean, never E[x²] - mean².
    """
    n = layer_normed(x, weight, bias, eps, rounding)
    return shifted(n, x, scale, shift, index, rounding).contiguous()


@op(**rules("layer_norm_scale", LAYER, scale=per_sample))
def layer_norm_scale(
    x: Tensor,
    scale: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    index: Tensor | None = None,
    eps: float = 1e-6,
    *,
    rounding: str = "each",
    numerics: str = "exact",
) -> Tensor:
    """layer_norm(x) * scale, the scale as it is: Z-Image's last layer. As `layer_norm_modulate`."""
    n = layer_normed(x, weight, bias, eps, rounding)
    return scaled(n, x, scale, index, rounding).contiguous()


@op(**rules("gate_residual_layer_norm_modulate", LAYER, 2, **GATED))
def gate_residual_layer_norm_modulate(
    x: Tensor,
    y: Tensor,
    gate: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    index: Tensor | None = None,
    eps: float = 1e-6,
    *,
    rounding: str = "each",
    numerics: str = "exact",
) -> tuple[Tensor, Tensor]:
    """(residual, layer_norm(residual) * (1 + scale) + shift), where residual = x + y * gate.

    As `gate_residual_rms_norm_modulate`, with the norm of `layer_norm_modulate`. Helios:
    rounding="once", fp32 gate, scale and shift as tables of two rows with an index.
    """
    residual = gated(x, y, gate, index, rounding).contiguous()
    n = layer_normed(residual, weight, bias, eps, rounding)
    return residual, shifted(n, x, scale, shift, index, rounding).contiguous()


@op(**rules("modulate", MODULATE, **SCALE))
def modulate(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    index: Tensor | None = None,
    *,
    rounding: str = "each",
    numerics: str = "exact",
) -> Tensor:
    """x * (1 + scale) + shift, without a norm: as `rms_norm_modulate`."""
    return shifted(x, x, scale, shift, index, rounding).contiguous()
