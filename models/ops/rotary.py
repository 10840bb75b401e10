"""Rotary position embedding: alone in the split form, and behind the RMSNorm of queries and keys.

Split: a head's first half is turned against its second half.

    out[:R] = x[:R] * cos - x[R:] * sin          out[R:] = x[R:] * cos + x[:R] * sin

Both contracts of LTX-2, told apart by the dtype of the tables. R rounds to x's dtype.

    tables of x's dtype  (Lightricks, SGLang)  R(R(a * cos) - b * sin): two roundings
    fp32 tables          (diffusers)           R(fma(-sin, b, a * cos)) in fp32: one rounding

`numerics="fast"` rounds once either way. Tables are read where they are: (B|1, H|1, T, R) in any
strides with R innermost; diffusers' lie token by token in memory.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...jit.declare import Cost
from ...jit.op import op
from ...jit.sign import Call, TensorSpec
from . import rotary_rules as rules
from .modulation import moved_bytes, wide
from .qk_norm_rotary_variants import QK
from .rotary_variants import SPLIT
from .row_norm_eager import rms_normed

# -- eager ------------------------------------------------------------------------------------


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, T, H*2R) turned, contiguous; see the module.

    In the wider dtype of x and the tables: there lies the first rounding point. `addcmul_` rounds
    the sum of a and b * c once in fp32, as one fused step (in 16 bits the product is exact anyway).
    """
    heads = x.unflatten(2, (-1, 2, cos.shape[-1])).transpose(1, 2)  # (B, H, T, 2, R)
    heads = heads.to(torch.promote_types(x.dtype, cos.dtype))
    first, second = heads.unbind(-2)
    turned = heads * cos.unsqueeze(-2)
    turned[..., 0, :].addcmul_(-sin, second)
    turned[..., 1, :].addcmul_(sin, first)
    return turned.to(x.dtype).transpose(1, 2).reshape(x.shape).contiguous()


def _turned_pairs(x: Tensor, table: Tensor, layout: str) -> Tensor:
    """x (B, T, H*2R) with neighbouring channels turned, contiguous; see `qk_norm_rotary`."""
    if layout == "complex":
        pairs = wide(x).unflatten(2, (-1, table.shape[2], 2))
        turned = _complex(pairs) * _complex(table).unsqueeze(2)
        return torch.view_as_real(turned).to(x.dtype).reshape(x.shape)
    cos, sin = table.unsqueeze(2).chunk(2, -1)
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    first, second = x.unflatten(2, (-1, cos.shape[-1], 2)).unbind(-1)
    turned = torch.stack((first * cos - second * sin, first * sin + second * cos), -1)
    return turned.to(x.dtype).reshape(x.shape)


def _complex(pairs: Tensor) -> Tensor:
    """(..., 2) as complex numbers. Copied: `view_as_complex` wants an even offset in memory."""
    return torch.complex(pairs[..., 0], pairs[..., 1])


def _normed(x: Tensor, weight: Tensor | None, eps: float, rounding: str) -> Tensor:
    """RMSNorm over whole rows, or over heads as long as the weight is.

    "once", which is torch.nn.RMSNorm, by hand, too: of a row with an Inf aten's own, on CUDA, makes
    zeros or NaN by whether it could load it in vectors.
    """
    if weight is None or weight.shape[0] == x.shape[2]:
        return rms_normed(x, weight, eps, rounding).to(x.dtype)
    heads = x.unflatten(2, (-1, weight.shape[0]))
    return rms_normed(heads, weight, eps, rounding).to(x.dtype).flatten(2)


# -- the ops ----------------------------------------------------------------------------------


def _sharing(turned: Sequence[rules.Turned]) -> dict[str, Any]:
    """Which calls share a tune, and what is compiled and checked for them."""
    names = ("bucket", "reach", "probes", "smaller")
    return {name: partial(getattr(rules, name), turned=turned) for name in names}


@op(
    variants=(SPLIT,),
    outputs=lambda call: {"out": TensorSpec(call.x.dtype, call.x.shape)},
    fake=lambda x, *_: torch.empty_like(x, memory_format=torch.contiguous_format),
    cost=lambda call: Cost(bytes=moved_bytes(call.tensors) + call.x.nbytes, flops=3 * call.x.numel),
    check=rules.check_split,
    selects=("numerics",),
    implied={"sin": lambda call: call.cos},
    **_sharing(rules.SPLIT),
)
def split_rotary(x: Tensor, cos: Tensor, sin: Tensor, *, numerics: str = "exact") -> Tensor:
    """x with every head turned by its angles; see the module for the two contracts.

    x: (B, T, H*2R), bf16|fp16|fp32; cos, sin: (B|1, H|1, T, R) of x's dtype or fp32, in any
    strides. Returns contiguous memory. Raises ValueError for what does not fit.
    """
    return _turned(x, cos, sin)


def _weight(call: Call) -> TensorSpec:
    return TensorSpec(call.q.dtype, call.q.shape[2:])


def _qk_fake(q: Tensor, k: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    like = torch.contiguous_format
    return torch.empty_like(q, memory_format=like), torch.empty_like(k, memory_format=like)


@op(
    variants=(QK,),
    outputs=lambda call: {
        "q_out": TensorSpec(call.q.dtype, call.q.shape),
        "k_out": TensorSpec(call.k.dtype, call.k.shape),
    },
    fake=_qk_fake,
    cost=lambda call: Cost(
        bytes=moved_bytes(call.tensors) + call.q.nbytes + call.k.nbytes,
        flops=8 * (call.q.numel + call.k.numel),
    ),
    check=rules.check_qk,
    selects=("layout", "rounding", "numerics"),
    implied={
        "k": lambda call: call.q,
        "wq": _weight,
        "wk": lambda call: call.wq,
        "q_sin": lambda call: call.q_cos if call.layout == "split" else None,
        "k_cos": lambda call: call.q_cos,
        "k_sin": lambda call: call.k_cos if call.layout == "split" else None,
    },
    **_sharing(rules.QK),
)
def qk_norm_rotary(
    q: Tensor,
    k: Tensor,
    wq: Tensor | None,
    wk: Tensor | None,
    q_cos: Tensor | None = None,
    q_sin: Tensor | None = None,
    k_cos: Tensor | None = None,
    k_sin: Tensor | None = None,
    eps: float = 1e-6,
    *,
    layout: str = "split",
    rounding: str = "once",
    numerics: str = "exact",
) -> tuple[Tensor, Tensor]:
    """Queries and keys normalised, rounded to their dtype, then turned, in one launch.

    q, k: (B, Tq, H*2R) and (B, Tk, H*2R), bf16|fp16|fp32. wq, wk: (H*2R,) for a norm over whole
    rows, (2R,) for one over each head, or None: over rows. `rounding` is that of the norm: "once"
    is torch.nn.RMSNorm, R(x * rstd * w); "each" diffusers' RMSNorm, R(R(x * rstd) * w); "native" as
    in `rms_norm`.

    Tables are for q of Tq and for k of Tk tokens; where q, k or both have none, they are normalised
    only. `layout` says which channels of a head are turned, and by what:

        split        x[r] and x[R + r]    cos, sin: see `split_rotary`
        interleaved  x[2r] and x[2r + 1]  q_cos: (B|1, Tq, 4R) fp32, Helios' [cos | sin], of which
                                          entries 2r of cos and 2r + 1 of sin count; q_sin: None.
                                          Both products are rounded to fp32
        complex      x[2r] and x[2r + 1]  q_cos: (B|1, Tq, R, 2) fp32, torch.view_as_real of
                                          Z-Image's freqs_cis; q_sin: None. Complex multiplication

    Returns contiguous memory. Raises ValueError for what does not fit.
    """
    results = []
    for x, weight, cos, sin in ((q, wq, q_cos, q_sin), (k, wk, k_cos, k_sin)):
        out = _normed(x, weight, eps, rounding)
        if cos is not None and layout != "split":
            out = _turned_pairs(out, cos, layout)
        elif cos is not None and sin is not None:
            out = _turned(out, cos, sin)
        results.append(out.contiguous())
    return results[0], results[1]


def apply_ltx2_split_rotary_emb(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`split_rotary` under the name that SGLang gives it: tables in x's dtype."""
    return split_rotary(x, cos, sin)


def apply_split_rotary_emb(x: Tensor, freqs: tuple[Tensor, Tensor]) -> Tensor:
    """The function of this name of diffusers and of SGLang, routed to `split_rotary`.

    freqs: (cos, sin), (B|1, H|1, T, R) beside x (B, T, H*2R) or x (B, H, T, 2R); (B|1, T, R)
    beside x (B, T, 2R). With fp32 tables it is diffusers' function bit for bit (which widens others
    to fp32 first), with tables of x's dtype SGLang's. Raises ValueError for anything else.
    """
    cos, sin = freqs
    if x.shape[-1] % 2:
        raise ValueError(f"x has {x.shape[-1]} channels: an odd head dim; allowed are even ones.")
    match x.ndim, cos.ndim:
        case 3, 4:
            return split_rotary(x, cos, sin)
        case 3, 3:
            return split_rotary(x, cos.unsqueeze(1), sin.unsqueeze(1))
        case 4, 4:  # mostly a view of (B, T, H, 2R), which is what split_rotary takes
            batch, heads, tokens, width = x.shape
            turned = split_rotary(x.transpose(1, 2).reshape(batch, tokens, -1), cos, sin)
            return turned.view(batch, tokens, heads, width).transpose(1, 2)
    raise ValueError(
        f"x is {tuple(x.shape)}, the tables {tuple(cos.shape)}; allowed are 3 and 4, 4 and 4, or 3 "
        "and 3 dimensions."
    )
