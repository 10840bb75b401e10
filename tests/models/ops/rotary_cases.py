"""Calls and tensors of the rotary ops, by name. Also used by tests/gpu."""

import torch
from jitd.jit.sign import Call, TensorSpec
from jitd.jit.tensors import spec_of
from jitd.models.ops.rotary import qk_norm_rotary, split_rotary

from .cases import randn

SPLIT, QK = split_rotary.op, qk_norm_rotary.op

# Layout -> a table (B, H, T, R) of that layout with the values of `full`, or of a part of it.
TABLES = {
    "by token": lambda full: full.transpose(1, 2).contiguous().transpose(1, 2),
    "by head": lambda full: full.contiguous(),
    "one sample": lambda full: TABLES["by token"](full[:1]),
    "one head": lambda full: full[:, :1].contiguous(),
    "one angle": lambda full: full[:1, :1].contiguous(),
    "expanded": lambda full: full[:1, :1].contiguous().expand(full.shape),
    "half of a row": lambda full: torch.cat([full, full], -1)[..., : full.shape[-1]],
    "odd rows": lambda full: torch.cat([full, full[..., :1]], -1)[..., : full.shape[-1]],
    "every other": lambda full: full.repeat_interleave(2, -1)[..., ::2],
    "unaligned": lambda full: torch.cat([full.new_zeros(1), full.flatten()])[1:].view(full.shape),
}

# Layout -> x (B, T, D) of that layout.
ROWS = {
    "contiguous": lambda x: x.contiguous(),
    "part of a row": lambda x: torch.cat([x, x, x], -1)[..., x.shape[-1] : 2 * x.shape[-1]],
    "odd rows": lambda x: torch.cat([x, x[..., :1]], -1)[..., : x.shape[-1]],
    "by token": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "every other": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "unaligned": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
}


def tables(batch, heads, tokens, half, *, layout="by token", dtype=torch.float32, seed=8, **how):
    """(cos, sin) of random angles."""
    angles = randn(batch, heads, tokens, half, seed=seed, **how) * 3
    return [TABLES[layout](part.to(dtype)) for part in (angles.cos(), angles.sin())]


def turned_arguments(
    shape, half, *, x="contiguous", layout="by token", dtype=torch.float32, table=None, **how
):
    """Arguments of `split_rotary`: x of (B, T, D), tables for its heads of 2 x half."""
    batch, tokens, width = shape
    given = ROWS[x](randn(*shape, dtype=dtype, **how))
    heads = width // (2 * half)
    table = table or torch.float32
    return [given, *tables(batch, heads, tokens, half, layout=layout, dtype=table, **how)]


# What stands beside q and k: tables for both, one or none.
KINDS = ("both", "same", "q only", "k only", "none")


def qk_arguments(
    shape, half, *, keys=None, kind="both", weights=torch.float32, x="contiguous",
    layout="by token", dtype=torch.float32, table=None, **how,
):  # fmt: skip
    """Arguments of `qk_norm_rotary`: q of `shape`, k of `keys` tokens (q's by default)."""
    batch, tokens, width = shape
    keys = keys or tokens
    heads = width // (2 * half)
    q, k = (
        ROWS[x](randn(batch, count, width, dtype=dtype, seed=seed, **how))
        for seed, count in ((0, tokens), (1, keys))
    )
    wq = wk = None
    if weights is not None:
        wq, wk = (randn(width, seed=seed, **how).to(weights) for seed in (2, 3))
    form = {"layout": layout, "dtype": table or torch.float32, **how}
    q_tables = tables(batch, heads, tokens, half, **form) if kind in ("both", "q only") else None
    k_tables = tables(batch, heads, keys, half, **form) if kind in ("both", "k only") else None
    if kind == "same":
        q_tables = k_tables = tables(batch, heads, tokens, half, **form)
    return [q, k, wq, wk, *(q_tables or (None, None)), *(k_tables or (None, None))]


def call_of(op, args, **scalars):
    """The call that these arguments make."""
    names = [argument.name for argument in op.tensors]
    values = dict.fromkeys(names)
    values |= {n: spec_of(t) for n, t in zip(names, args, strict=False) if t is not None}
    for argument in op.arguments:
        if argument.kind != "tensor":
            values[argument.name] = scalars.get(argument.name, argument.default)
    return Call(values)


def made_call(
    op, shape, half, *, keys=None, kind="both", weights="bf16", layout="by token", dtype="bf16",
    table="fp32", numerics="exact",
):  # fmt: skip
    """A call without tensors, of any size; keyword arguments as of `qk_arguments`."""
    batch, tokens, width = shape

    def angles(count):
        heads = 1 if layout in ("one head", "one angle") else width // (2 * half)
        samples = 1 if layout in ("one sample", "one angle") else batch
        by_token = layout in ("by token", "one sample") and heads > 1 < count
        order = "perm0213" if by_token else "contiguous"
        return TensorSpec.with_layout(table, (samples, heads, count, half), order)

    values = {"x": TensorSpec(dtype, shape), "cos": angles(tokens), "sin": angles(tokens)}
    if op is QK:
        values = dict.fromkeys(argument.name for argument in op.tensors)
        values |= {"eps": 1e-6, "layout": "split", "rounding": "once"}
        for letter, count in (("q", tokens), ("k", keys or tokens)):
            values[letter] = TensorSpec(dtype, (batch, count, width))
            if weights is not None:
                values[f"w{letter}"] = TensorSpec(weights, (width,))
            if kind in ("both", "same", f"{letter} only"):
                values[f"{letter}_cos"] = values[f"{letter}_sin"] = angles(count)
    return Call({**values, "numerics": numerics})


def double(args):
    """The same arguments in float64."""
    return [a.double() if isinstance(a, torch.Tensor) else a for a in args]
