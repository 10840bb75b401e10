"""Helios' transformer, which denoises a video chunk by chunk, on jitd's fused ops.

Same parameters and same mathematics as `HeliosTransformer3DModel` of diffusers
(models/transformers/transformer_helios.py, read at 0.42.1), so that a state dict of that class
loads with strict=True: Helios-Base, -Mid and -Distilled. `block.py` says which ops a block calls.

A chunk is denoised in sight of the frames before it, its history. `sequence.py` says how they
become tokens.
"""

from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..embeddings import TextProjection, TimestepEmbedder
from ..ops.row_norm import layer_norm_modulate
from .block import Block, Conditioning
from .config import TransformerConfig
from .rope import rotary_table
from .sequence import Older, joined, modulation_rows, pixels

__all__ = ["HeliosTransformer", "last_norm"]

# What diffusers leaves in fp32 when it loads a model in another dtype: parts of parameters' names.
KEPT_IN_FP32 = frozenset(
    ("time_embedder", "scale_shift_table", "norm1", "norm2", "norm3", "history_key_scale")
)


class HeliosTransformer(nn.Module):
    """Denoises latents of a chunk, given prompt, timestep and history.

    The arguments are those of `TransformerConfig`, which are the config of diffusers' class.
    """

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config = c = TransformerConfig(**config)
        self.patch_embedding = _patches(c, 1)
        if c.has_multi_term_memory_patch:
            self.patch_short = _patches(c, 1)
            self.patch_mid = _patches(c, 2)
            self.patch_long = _patches(c, 4)
        self.condition_embedder = nn.ModuleDict(
            {
                "time_embedder": TimestepEmbedder(c.dim, c.freq_dim // 2),
                "time_proj": nn.Linear(c.dim, 6 * c.dim),
                "text_embedder": TextProjection(c.text_dim, c.dim),
            }
        )
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.num_layers))
        self.norm_out = nn.ParameterDict(
            {"scale_shift_table": nn.Parameter(torch.randn(1, 2, c.dim) / c.dim**0.5)}
        )
        self.proj_out = nn.Linear(c.dim, (c.out_channels or c.in_channels) * prod(c.patch_size))

    def cast(self, dtype: torch.dtype) -> "HeliosTransformer":
        """The model in `dtype`, but for the parameters that diffusers keeps in fp32 whatever dtype
        a model is loaded in: timesteps' embedding, modulation tables, norm2, scales of keys.

        `to(dtype)` casts them all, and rounds what is added to the stream in every block.
        """
        for name, parameter in self.named_parameters():
            kept = not KEPT_IN_FP32.isdisjoint(name.split("."))
            parameter.data = parameter.data.to(torch.float32 if kept else dtype)
        return self

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        indices_hidden_states: Tensor | None = None,
        indices_latents_history_short: Tensor | None = None,
        indices_latents_history_mid: Tensor | None = None,
        indices_latents_history_long: Tensor | None = None,
        latents_history_short: Tensor | None = None,
        latents_history_mid: Tensor | None = None,
        latents_history_long: Tensor | None = None,
    ) -> Tensor:
        """What the chunk's latents move by, (B, out_channels, F, H, W).

        hidden_states          latents of the chunk, (B, in_channels, F, H, W)
        timestep               (B,)
        encoder_hidden_states  the prompt, (B, T, text_dim)
        indices_hidden_states  the points in time of the chunk's frames, (B|1, F); 0, 1, … without
        indices_latents_history_short, _mid, _long, latents_history_short, _mid, _long
                               the frames before it, (B, in_channels, n, H', W'), and their points
                               in time, (B|1, n): both, or neither. Mid-term and long-term history
                               need the short-term one, whose height and width are theirs, too

        Raises ValueError for what does not fit.
        """
        c = self.config
        _check(c, hidden_states, timestep, encoder_hidden_states)
        batch, _, frames = hidden_states.shape[:3]
        if indices_hidden_states is None:
            indices_hidden_states = torch.arange(frames, device=hidden_states.device)[None]
        history = []
        for name, window, latents, indices in (
            ("short", 1, latents_history_short, indices_latents_history_short),
            ("mid", 2, latents_history_mid, indices_latents_history_mid),
            ("long", 4, latents_history_long, indices_latents_history_long),
        ):
            if latents is not None or indices is not None:
                _check_history(c, name, latents, indices, batch)
                history.append(
                    Older(name, window, getattr(self, f"patch_{name}"), latents, indices)
                )
        stream = joined(
            self.patch_embedding, hidden_states, indices_hidden_states, history, self._table
        )
        text = self.condition_embedder["text_embedder"](encoder_hidden_states)
        x = stream.x
        embedded, rows = self._embedded(timestep, x.dtype)
        of_history = None
        if stream.history and c.zero_history_timestep:
            # By itself, as diffusers does it: a product of other sizes has other bits on the CPU.
            of_history = self._embedded(timestep.new_zeros(1), x.dtype)[1]
        rows, index = modulation_rows(rows, of_history, stream)
        told = Conditioning(rows, index, text, stream.table, stream.history)
        for block in self.blocks:
            x = block(x, told)
        rows = self.norm_out["scale_shift_table"] + embedded.unsqueeze(1)
        x = x[:, stream.history :]
        return pixels(self.proj_out(last_norm(x, rows, c.eps)), stream.grid, c.patch_size)

    def _table(self, frames: Tensor, height: int, width: int, window: int) -> Tensor:
        c = self.config
        return rotary_table(
            frames, height, width, dims=c.rope_dim, theta=c.rope_theta, window=window
        )

    def _embedded(self, timestep: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        embedder = self.condition_embedder["time_embedder"]
        embedded = embedder(timestep, embedder.linear_1.weight.dtype).to(dtype)
        rows = self.condition_embedder["time_proj"](F.silu(embedded))
        return embedded, rows.unflatten(1, (6, -1))


def last_norm(x: Tensor, rows: Tensor, eps: float, *, numerics: str = "exact") -> Tensor:
    """x (B, S, D) in front of the last product; rows: shift and scale, (B, 2, D) or by token."""
    shift, scale = rows.unbind(-2)
    return layer_norm_modulate(x, scale, shift, eps=eps, rounding="once", numerics=numerics)


def _patches(c: TransformerConfig, factor: int) -> nn.Conv3d:
    side = tuple(factor * size for size in c.patch_size)
    return nn.Conv3d(c.in_channels, c.dim, kernel_size=side, stride=side)


def _check(c: TransformerConfig, latents: Tensor, timestep: Tensor, text: Tensor) -> None:
    """Raise ValueError unless these fit each other."""
    shape, (_, rows, columns) = tuple(latents.shape), c.patch_size
    fits = len(shape) == 5 and shape[1] == c.in_channels
    if not fits or shape[3] % rows or shape[4] % columns:
        raise ValueError(
            f"hidden_states is {shape}; allowed is (B, {c.in_channels}, F, H, W), H and W even."
        )
    if tuple(timestep.shape) != (shape[0],):
        raise ValueError(f"timestep is {tuple(timestep.shape)}; allowed is {(shape[0],)}.")
    if text.ndim != 3 or text.shape[0] != shape[0] or text.shape[2] != c.text_dim:
        raise ValueError(
            f"encoder_hidden_states is {tuple(text.shape)}; allowed is ({shape[0]}, T, "
            f"{c.text_dim})."
        )


def _check_history(
    c: TransformerConfig, name: str, latents: Tensor | None, indices: Tensor | None, batch: int
) -> None:
    """Raise ValueError unless one term of history is whole and fits."""
    if latents is None or indices is None:
        missing = "latents_history" if latents is None else "indices_latents_history"
        raise ValueError(f"{missing}_{name} is missing beside its other half.")
    if not c.has_multi_term_memory_patch:
        raise ValueError(f"latents_history_{name} is given; this model has no patches for it.")
    if latents.ndim != 5 or latents.shape[:2] != (batch, c.in_channels):
        raise ValueError(
            f"latents_history_{name} is {tuple(latents.shape)}; allowed is ({batch}, "
            f"{c.in_channels}, n, H, W)."
        )
