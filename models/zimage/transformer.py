"""Z-Image's transformer, which denoises images, on jitd's fused ops.

Same parameters and same mathematics as `ZImageTransformer2DModel` of diffusers
(models/transformers/transformer_z_image.py, read at 0.42.1), so that a state dict of that class
loads with strict=True: Z-Image and Z-Image-Turbo. `block.py` says which ops a block calls. Images
as a condition (SigLIP) are not part of it.

Image and caption are refined by themselves, then go as one sequence through the layers. Both are
filled up to multiples of 32 tokens, and samples of a batch to the longest.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..embeddings import timestep_waves
from ..ops.row_norm import layer_norm_scale, rms_norm
from .block import Block
from .config import TransformerConfig
from .rope import caption_table, image_table

__all__ = ["ZImageTransformer"]

STEP = 32  # a sequence is filled up to a multiple of so many tokens
_FREQUENCIES = 128  # of an embedded timestep
_EMBEDDER = 1024  # channels inside its embedder


class ZImageTransformer(nn.Module):
    """Denoises latents of images, given captions and timesteps.

    The arguments are those of `TransformerConfig`, which are the config of diffusers' class.
    """

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config = c = TransformerConfig(**config)
        self.all_x_embedder = nn.ModuleDict()
        self.all_final_layer = nn.ModuleDict()
        for side, frames in c.patches:
            pixels = frames * side * side * c.in_channels
            self.all_x_embedder[f"{side}-{frames}"] = nn.Linear(pixels, c.dim)
            self.all_final_layer[f"{side}-{frames}"] = FinalLayer(c, pixels)
        self.noise_refiner = nn.ModuleList(Block(c) for _ in range(c.n_refiner_layers))
        self.context_refiner = nn.ModuleList(
            Block(c, modulated=False) for _ in range(c.n_refiner_layers)
        )
        layers = (
            nn.Linear(2 * _FREQUENCIES, _EMBEDDER),
            nn.SiLU(),
            nn.Linear(_EMBEDDER, c.modulation_dim),
        )
        self.t_embedder = nn.ModuleDict({"mlp": nn.Sequential(*layers)})
        self.cap_embedder = nn.Sequential(
            nn.RMSNorm(c.cap_feat_dim, eps=c.norm_eps), nn.Linear(c.cap_feat_dim, c.dim)
        )
        self.x_pad_token = nn.Parameter(torch.zeros(1, c.dim))
        self.cap_pad_token = nn.Parameter(torch.zeros(1, c.dim))
        self.layers = nn.ModuleList(Block(c) for _ in range(c.n_layers))

    def forward(
        self,
        x: Sequence[Tensor],
        t: Tensor,
        cap_feats: Sequence[Tensor],
        patch_size: int = 2,
        f_patch_size: int = 1,
    ) -> list[Tensor]:
        """What each image's latents move by, (in_channels, F, H, W).

        x          latents, (in_channels, F, H, W) each, of any sizes that patches divide
        t          (B,), from 0 (noise) to 1
        cap_feats  captions, (L, cap_feat_dim) each, of any lengths but 0

        Nothing waits for the device. Raises ValueError for what does not fit.
        """
        c, patch = self.config, (f_patch_size, patch_size, patch_size)
        _check(c, x, t, cap_feats, (patch_size, f_patch_size))
        # Found, not put together of the numbers: torch.compile may not know these.
        wanted = c.patches.index((patch_size, f_patch_size))
        embedder = list(self.all_x_embedder.values())[wanted]
        final = list(self.all_final_layer.values())[wanted]
        device, dtype, axes = x[0].device, x[0].dtype, (c.axes_dims, c.rope_theta)
        timestep = self._embedded(t * c.t_scale).to(dtype)

        captions = [_Filled.of(caption) for caption in cap_feats]
        images = [_Filled.of(_patches(latents, patch)) for latents in x]
        grids = [_grid(latents, patch) for latents in x]
        places = [
            (caption.tokens, image.tokens, grid)
            for caption, image, grid in zip(captions, images, grids, strict=True)
        ]
        if all(place == places[0] for place in places):
            places = places[:1]  # one table serves all samples
        caption_tables, image_tables = [], []
        for tokens, image_tokens, grid in places:
            _check_places(c, grid, tokens)
            caption_tables.append(caption_table(tokens, axes, device))
            image_tables.append(image_table(grid, tokens + 1, image_tokens, axes, device))

        refined = self._refined(
            images, embedder, self.x_pad_token, image_tables,
            self.noise_refiner, timestep,
        )  # fmt: skip
        context = self._refined(
            captions, self._caption_embedded, self.cap_pad_token, caption_tables,
            self.context_refiner, None,
        )  # fmt: skip
        tables = [torch.cat(pair) for pair in zip(image_tables, caption_tables, strict=True)]
        stream, table, mask = _batched(
            [torch.cat(pair) for pair in zip(refined, context, strict=True)], tables
        )
        for layer in self.layers:
            stream = layer(stream, table, mask, timestep)
        stream = final(stream, timestep)
        return [_image(one, grid, patch) for one, grid in zip(stream, grids, strict=True)]

    def _embedded(self, t: Tensor) -> Tensor:
        mlp = self.t_embedder["mlp"]
        return mlp(timestep_waves(t, _FREQUENCIES).to(mlp[0].weight.dtype))

    def _caption_embedded(self, features: Tensor) -> Tensor:
        norm, linear = self.cap_embedder
        return linear(rms_norm(features, norm.weight, self.config.norm_eps))

    def _refined(
        self,
        given: Sequence["_Filled"],
        embedder: Callable[[Tensor], Tensor],
        filler: Tensor,
        tables: Sequence[Tensor],
        blocks: nn.ModuleList,
        timestep: Tensor | None,
    ) -> list[Tensor]:
        """Each sample's tokens (n, dim), n a multiple of 32, after the blocks of their kind."""
        embedded = embedder(torch.cat([one.features for one in given]))
        embedded = torch.where(torch.cat([one.is_filler for one in given]), filler, embedded)
        lengths = [one.tokens for one in given]
        stream, table, mask = _batched(embedded.split(lengths), tables)
        for block in blocks:
            stream = block(stream, table, mask, timestep)
        return [one[:length] for one, length in zip(stream, lengths, strict=True)]


class FinalLayer(nn.Module):
    """Tokens as pixels: a norm, scaled by the timestep, and a product."""

    EPS = 1e-6

    def __init__(self, c: TransformerConfig, pixels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(c.dim, pixels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(c.modulation_dim, c.dim))

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        scale = 1.0 + self.adaLN_modulation(timestep).unsqueeze(1)
        return self.linear(layer_norm_scale(x, scale, eps=self.EPS))


class _Filled(NamedTuple):
    """A sequence that repeats its last features up to a multiple of 32 tokens."""

    features: Tensor  # (tokens, C)
    is_filler: Tensor  # (tokens, 1) of bool
    tokens: int

    @classmethod
    def of(cls, features: Tensor) -> "_Filled":
        length = features.shape[0]
        tokens = (length + STEP - 1) // STEP * STEP
        # By index, whether anything is missing or not: torch.compile needs no code of its own for
        # lengths that are multiples of 32.
        at = torch.arange(tokens, device=features.device)
        return cls(features[at.clamp(max=length - 1)], (at >= length).unsqueeze(1), tokens)


def _batched(
    parts: Sequence[Tensor], tables: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Samples (n, dim) as (B, S, dim), their tables as (B|1, S, R, 2), and the mask, (B, 1, 1, S)
    of bool, where one is shorter than another.
    """
    lengths = [part.shape[0] for part in parts]
    stream = pad_sequence(list(parts), batch_first=True)
    table = pad_sequence(list(tables), batch_first=True)
    if all(length == lengths[0] for length in lengths):
        return stream, table, None
    at = torch.arange(stream.shape[1], device=stream.device)
    mask = torch.stack([at < length for length in lengths])
    return stream, table, mask[:, None, None]


def _grid(latents: Tensor, patch: Sequence[int]) -> tuple[int, ...]:
    """Tokens along each axis of latents (C, F, H, W)."""
    return tuple(size // side for size, side in zip(latents.shape[1:], patch, strict=True))


def _patches(latents: Tensor, patch: Sequence[int]) -> Tensor:
    """Latents (C, F, H, W) as tokens (T, pixels * C), frames outermost."""
    frames, rows, columns = _grid(latents, patch)
    f, h, w = patch
    cut = latents.reshape(latents.shape[0], frames, f, rows, h, columns, w)
    return cut.permute(1, 3, 5, 2, 4, 6, 0).reshape(frames * rows * columns, -1)


def _image(tokens: Tensor, grid: Sequence[int], patch: Sequence[int]) -> Tensor:
    """The latents (C, F, H, W) of the first tokens (T, pixels * C)."""
    frames, rows, columns = grid
    f, h, w = patch
    cut = tokens[: frames * rows * columns].view(frames, rows, columns, f, h, w, -1)
    return cut.permute(6, 0, 3, 1, 4, 2, 5).reshape(-1, frames * f, rows * h, columns * w)


def _check(
    c: TransformerConfig, x: Sequence[Tensor], t: Tensor, captions: Sequence[Tensor],
    patch: tuple[int, int],
) -> None:  # fmt: skip
    """Raise ValueError unless these fit each other."""
    if patch not in c.patches:
        raise ValueError(
            f"patch_size and f_patch_size are {patch}; allowed are "
            f"{', '.join(map(str, c.patches))}."
        )
    if not x or len(captions) != len(x):
        raise ValueError(f"x has {len(x)} images, cap_feats {len(captions)} captions.")
    if tuple(t.shape) != (len(x),):
        raise ValueError(f"t is {tuple(t.shape)}; allowed is {(len(x),)}.")
    side, frames = patch
    for latents in x:
        shape = tuple(latents.shape)
        fits = len(shape) == 4 and shape[0] == c.in_channels
        if not fits or shape[1] % frames or shape[2] % side or shape[3] % side:
            raise ValueError(
                f"latents of {shape}; allowed are ({c.in_channels}, F, H, W), F a multiple of "
                f"{frames}, H and W of {side}."
            )
    for caption in captions:
        if caption.ndim != 2 or caption.shape[0] < 1 or caption.shape[1] != c.cap_feat_dim:
            raise ValueError(
                f"a caption of {tuple(caption.shape)}; allowed is (L, {c.cap_feat_dim}), L > 0."
            )


def _check_places(c: TransformerConfig, grid: Sequence[int], caption: int) -> None:
    """Raise ValueError where tokens lie farther out than the model was made for."""
    frames, rows, columns = grid
    ends = (caption + 1 + frames, rows, columns)
    if any(end > length for end, length in zip(ends, c.axes_lens, strict=True)):
        raise ValueError(
            f"an image of {frames} x {rows} x {columns} tokens behind a caption of {caption} ends "
            f"at {ends}; allowed is up to {tuple(c.axes_lens)}."
        )
