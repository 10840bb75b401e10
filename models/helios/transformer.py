"""Helios' transformer, which denoises a video chunk by chunk, on jitd's fused ops.

Same parameters and same mathematics as `HeliosTransformer3DModel` of diffusers
(models/transformers/transformer_helios.py, read at 0.42.1), so that a state dict of that class
loads with strict=True: Helios-Base, -Mid and -Distilled. `block.py` says which ops a block calls.

A chunk is denoised in sight of the frames before it, its history. The older they are, the larger
are the patches that become tokens: short-term history has those of the chunk, mid-term history
twice and long-term history four times their side, in time, too.
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
from .rope import filled_windows, rotary_table

__all__ = ["HeliosTransformer"]

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
        chunk = self.patch_embedding(hidden_states)
        grid = chunk.shape[2:]
        if indices_hidden_states is None:
            indices_hidden_states = torch.arange(frames, device=chunk.device)[None]
        parts = [_tokens(chunk)]
        tables = [self._table(indices_hidden_states, grid, 1, hidden_states.device)]

        terms = (
            ("short", 1, latents_history_short, indices_latents_history_short),
            ("mid", 2, latents_history_mid, indices_latents_history_mid),
            ("long", 4, latents_history_long, indices_latents_history_long),
        )
        of_short: tuple[int, ...] | None = None
        for name, window, latents, indices in terms:
            if latents is None and indices is None:
                continue
            _check_history(c, name, latents, indices, batch)
            patches = getattr(self, f"patch_{name}")
            tokens = patches(filled_windows(latents, patches.kernel_size))
            if name == "short":
                of_short = tokens.shape[3:]
            if of_short is None:
                raise ValueError(f"latents_history_{name} needs latents_history_short.")
            parts.insert(0, _tokens(tokens))
            shape = (indices.shape[1], *of_short)
            tables.insert(0, self._table(indices, shape, window, hidden_states.device))
            if tables[0].shape[1] != parts[0].shape[1]:
                raise ValueError(
                    f"latents_history_{name} of {tuple(latents.shape)} are {parts[0].shape[1]} "
                    f"tokens; {indices.shape[1]} frames of the short-term history's height and "
                    f"width are {tables[0].shape[1]}."
                )
        x = torch.cat(parts, dim=1)
        history = x.shape[1] - parts[-1].shape[1]
        text = self.condition_embedder["text_embedder"](encoder_hidden_states)
        embedded, rows, index = self._rows(timestep, x, history)
        told = Conditioning(rows.float(), index, text, torch.cat(tables, dim=1), history)
        for block in self.blocks:
            x = block(x, told)
        shift, scale = (self.norm_out["scale_shift_table"] + embedded.unsqueeze(1)).unbind(1)
        x = layer_norm_modulate(x[:, history:], scale, shift, eps=c.eps, rounding="once")
        return _pixels(self.proj_out(x), tuple(grid), c.patch_size)

    def _table(
        self, frames: Tensor, grid: tuple[int, ...], window: int, device: torch.device
    ) -> Tensor:
        c = self.config
        frames = frames.to(device)
        return rotary_table(frames, *grid[1:], dims=c.rope_dim, theta=c.rope_theta, window=window)

    def _rows(
        self, timestep: Tensor, x: Tensor, history: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The embedded timesteps (B, D), rows of modulation parameters (R, 6, D), and the index.

        History that has timestep zero has the first row, sample b the row after its b before it.
        """
        embedded, rows = self._embedded(timestep, x.dtype)
        if not (history and self.config.zero_history_timestep):
            return embedded, rows, None
        # By itself, as diffusers does it: a product of other sizes has other bits on the CPU.
        _, zero = self._embedded(timestep.new_zeros(1), x.dtype)
        batch, tokens = x.shape[:2]
        index = torch.zeros(batch, tokens, dtype=torch.int32, device=x.device)
        samples = torch.arange(1, batch + 1, dtype=torch.int32, device=x.device)
        index[:, history:] = samples.unsqueeze(1)
        return embedded, torch.cat([zero, rows]), index

    def _embedded(self, timestep: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        embedder = self.condition_embedder["time_embedder"]
        embedded = embedder(timestep, embedder.linear_1.weight.dtype).to(dtype)
        rows = self.condition_embedder["time_proj"](F.silu(embedded))
        return embedded, rows.unflatten(1, (6, -1))


def _patches(c: TransformerConfig, factor: int) -> nn.Conv3d:
    side = tuple(factor * size for size in c.patch_size)
    return nn.Conv3d(c.in_channels, c.dim, kernel_size=side, stride=side)


def _tokens(x: Tensor) -> Tensor:
    """(B, D, F, H, W) as (B, F*H*W, D)."""
    return x.flatten(2).transpose(1, 2)


def _pixels(x: Tensor, grid: tuple[int, ...], patch: tuple[int, ...]) -> Tensor:
    """Tokens (B, F*H*W, patch * C) as latents (B, C, F', H', W')."""
    x = x.unflatten(2, (*patch, -1)).unflatten(1, grid)
    return x.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)


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
