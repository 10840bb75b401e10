"""Calls and tensors of the gates, by name. Also used by tests/gpu."""

import torch
import torch.nn.functional as F
from jitd.jit.sign import Call
from jitd.jit.tensors import spec_of
from jitd.models.ops.gates import gate_residual, head_gate

from .cases import randn

RESIDUAL, HEADS = gate_residual.op, head_gate.op
DTYPES = (torch.bfloat16, torch.float16, torch.float32)

# Layout -> tokens (B, S, D) of that layout with the values of x.
TOKENS = {
    "contiguous": lambda x: x.contiguous(),
    "sliced": lambda x: F.pad(x, (0, 0, 2, 3))[:, 2:-3],
    "beside": lambda x: F.pad(x, (8, 16))[..., 8:-16],
    "gapped": lambda x: F.pad(x, (0, 1))[..., :-1],
    "unaligned": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
    "tokens first": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "channels first": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
}

ROWS = 3  # of a table


def frames_of(tokens):
    """The most frames, fewer than tokens, into which they divide."""
    return next(n for n in range(tokens - 1, 0, -1) if tokens % n == 0)


# How a gate lies -> its shape beside (B, S, D).
GATES = {
    "channel": lambda b, s, d: (d,),
    "one row": lambda b, s, d: (1, d),
    "sample": lambda b, s, d: (b, d),
    "sample 3d": lambda b, s, d: (b, 1, d),
    "frame": lambda b, s, d: (b, frames_of(s), d),
    "frame of all": lambda b, s, d: (1, frames_of(s), d),
    "token": lambda b, s, d: (b, s, d),
    "index": lambda b, s, d: (ROWS, d),
    "index i64": lambda b, s, d: (ROWS, d),
}


def residual_arguments(shape, gate="sample 3d", *, layout="contiguous", chunk=False, **how):
    """[x, y, gate, index]. `chunk`: the gate is a slice of the modulation of a block, as models
    have it. `gate_dtype` beside `dtype` for a gate of another one."""
    gate_dtype = how.pop("gate_dtype", how.get("dtype", torch.float32))
    x, y = (TOKENS[layout](randn(*shape, seed=seed, **how)) for seed in (0, 1))
    size = GATES[gate](*shape)
    values = randn(*size, seed=2, **{**how, "dtype": gate_dtype})
    if chunk:
        values = torch.cat([values, values, values], -1).chunk(3, -1)[1]
    index = None
    if gate.startswith("index"):
        index = randn(*shape[:2], seed=3, device=x.device).mul(2).round().long() % ROWS
        index = index if gate == "index i64" else index.int()
    return [x, y, values, index]


def full_gate(x, gate, index):
    """The gate that each token takes, row by row as the docs say it."""
    batch, tokens, width = x.shape
    rows = []
    for b in range(batch):
        for s in range(tokens):
            if gate.ndim == 1:
                row = gate
            elif gate.ndim == 2:
                row = gate[b % gate.shape[0]] if index is None else gate[int(index[b, s])]
            else:
                row = gate[b % gate.shape[0], s * gate.shape[1] // tokens]
            rows.append(row)
    return torch.stack(rows).view(batch, tokens, width)


def eager_residual(x, y, gate, index, rounding="each"):
    """What a model written in eager does."""
    gate = full_gate(x, gate, index)
    if rounding == "each":
        return x + y * gate
    return (x.float() + y.float() * gate.float()).to(x.dtype)


def head_arguments(batch, tokens, heads, head_dim, *, layout="contiguous", **how):
    """[x, logits]."""
    x = TOKENS[layout](randn(batch, tokens, heads * head_dim, **how))
    return [x, TOKENS[layout](3 * randn(batch, tokens, heads, seed=1, **how))]


def eager_heads(x, logits):
    """What a model written in eager does."""
    gates = torch.sigmoid(logits).mul(2)
    return x * gates.repeat_interleave(x.shape[2] // logits.shape[2], dim=2)


def call_of(op, args, **named):
    """The call that these arguments make."""
    values = [a if a is None else spec_of(a) for a in args]
    given = dict(zip([a.name for a in op.arguments], values, strict=False))
    return Call({a.name: {**given, **named}.get(a.name, a.default) for a in op.arguments})
