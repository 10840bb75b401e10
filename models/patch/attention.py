"""What the recipes of attentions share: norms of queries and keys, and diffusers' dispatcher."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

__all__ = ["dispatched", "norms_of", "rms_norms_fit"]


def dispatched(
    stock: Any,
    processor: Any,
    q: Tensor,
    k: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    parallel: bool = True,
) -> Tensor:
    """What the stock processor attends with, from (B, S, heads, D); the same shape.

    stock     its module: the dispatcher is looked up there at each call, since there is where
              others put their own. `set_attention_backend` and context parallelism are heeded
    parallel  whether the processor hands on how it is spread over cards
    """
    out: Tensor = stock.dispatch_attention_fn(
        q,
        k,
        value,
        attn_mask=mask,
        dropout_p=0.0,
        is_causal=False,
        backend=processor._attention_backend,
        parallel_config=processor._parallel_config if parallel else None,
    )
    return out


def norms_of(module: Any) -> Iterator[nn.Module]:
    """The norms of queries and keys, which recipes read."""
    yield from (module.norm_q, module.norm_k)


def rms_norms_fit(module: Any) -> str | None:
    """Why torch's RMSNorm of queries or keys is none that `qk_norm_rotary` computes, or None."""
    q, k = norms_of(module)
    if type(q) is not nn.RMSNorm or type(k) is not nn.RMSNorm:
        return "norms of another class"
    if q.weight is None or k.weight is None:
        return "norms without weights"
    if q.eps is None or (q.eps, q.normalized_shape) != (k.eps, k.normalized_shape):
        return "norms that differ"
    return None
