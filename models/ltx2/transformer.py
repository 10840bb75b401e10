"""LTX-2's transformer, which denoises video and audio together, on jitd's fused ops.

Same parameters and same mathematics as `LTX2VideoTransformer3DModel` of diffusers
(models/transformers/transformer_ltx2.py, read at 0.42.1), so that a state dict of that class loads
with strict=True: LTX-2.0, LTX-2.3 (gated attention, modulated cross-attention, perturbed
attention) and LTX-2.5. `block.py` says which ops a block calls. Text connectors are not part of it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..embeddings import TextProjection
from ..ops.row_norm import layer_norm_modulate
from .block import Block, Conditioning
from .config import TransformerConfig
from .embedding import Modulation, Timesteps, index_for
from .inputs import (
    checked_coords,
    checked_latents,
    checked_sigma,
    checked_text,
    score_bias,
)
from .perturbation import perturbed_blocks
from .rope import Rotary
from .rope import audio_coords as coords_of_audio
from .rope import video_coords as coords_of_video

__all__ = ["LTX2Transformer"]


class LTX2Transformer(nn.Module):
    """Denoises video and audio latents, given prompt and timesteps.

    The arguments are those of `TransformerConfig`, which are the config of diffusers' class.
    """

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config = c = TransformerConfig(**config)
        dim, audio_dim = c.dim, c.audio_dim
        times = (c.pos_embed_max_pos, c.audio_pos_embed_max_pos)
        common = (max(times), c.rope_theta, c.rope_double_precision)
        self.rotary = Rotary(
            c.heads, c.audio_heads, (times[0], c.base_height, c.base_width), *common
        )
        self.audio_rotary = Rotary(c.audio_heads, c.audio_heads, times[1:], *common)

        self.proj_in = nn.Linear(c.in_channels, dim)
        self.audio_proj_in = nn.Linear(c.audio_in_channels, audio_dim)
        if c.use_keyframes_abs_pos_embedding:
            self.keyframes_abs_pos_embedding = nn.Parameter(torch.zeros(1, dim))
        if c.use_prompt_embeddings:
            self.caption_projection = TextProjection(c.caption_channels, dim)
            self.audio_caption_projection = TextProjection(c.caption_channels, audio_dim)
        self.time_embed = Modulation(dim, 9 if c.cross_attn_mod else 6)
        self.audio_time_embed = Modulation(audio_dim, 9 if c.audio_cross_attn_mod else 6)
        self.av_cross_attn_video_scale_shift = Modulation(dim, 4)
        self.av_cross_attn_audio_scale_shift = Modulation(audio_dim, 4)
        self.av_cross_attn_video_a2v_gate = Modulation(dim, 1)
        self.av_cross_attn_audio_v2a_gate = Modulation(audio_dim, 1)
        self.scale_shift_table = nn.Parameter(torch.randn(2, dim) / dim**0.5)
        self.audio_scale_shift_table = nn.Parameter(torch.randn(2, audio_dim) / audio_dim**0.5)
        prompts = c.modulates_prompts and c.use_prompt_adaln_single
        self.prompt_adaln = Modulation(dim, 2) if prompts else None
        self.audio_prompt_adaln = Modulation(audio_dim, 2) if prompts else None
        self.transformer_blocks = nn.ModuleList(Block(c) for _ in range(c.num_layers))
        self.proj_out = nn.Linear(dim, c.out_channels or c.in_channels)
        self.audio_proj_out = nn.Linear(audio_dim, c.audio_out_channels or c.audio_in_channels)

    def forward(
        self,
        hidden_states: Tensor,
        audio_hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        audio_encoder_hidden_states: Tensor,
        timestep: Tensor,
        audio_timestep: Tensor | None = None,
        sigma: Tensor | None = None,
        audio_sigma: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        audio_encoder_attention_mask: Tensor | None = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        fps: float = 24.0,
        audio_num_frames: int | None = None,
        video_coords: Tensor | None = None,
        audio_coords: Tensor | None = None,
        isolate_modalities: bool = False,
        spatio_temporal_guidance_blocks: Sequence[int] | None = None,
        perturbation_mask: Tensor | None = None,
        use_cross_timestep: bool = False,
        video_self_attention_mask: Tensor | None = None,
        video_keyframes_mask: Tensor | None = None,
        *,
        timestep_index: Tensor | None = None,
        audio_timestep_index: Tensor | None = None,
        perturbation_configs: Sequence[Mapping[str, Any]] | None = None,
        skip_video_self_attn_blocks: Sequence[int] = (),
        skip_audio_self_attn_blocks: Sequence[int] = (),
        disable_a2v_cross_attn: bool = False,
        disable_v2a_cross_attn: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """The velocities of video, (B, S, out_channels), and audio, (B, A, audio_out_channels).

        hidden_states          video latents, (B, S, in_channels), frames outermost among tokens
        audio_hidden_states    (B, A, audio_in_channels)
        encoder_hidden_states  the prompt, (B, T, caption_channels); without caption projection
                               (2.3) of the width of cross-attention. Its audio twin likewise
        timestep               scaled by timestep_scale_multiplier: (B,), (B, S), or the distinct
                               ones (R,) with `timestep_index` (B, S), see `embedding.py`. Of audio
                               `timestep`, if it is (B,) and nothing else is given
        sigma                  (B,), scaled as timestep; needed by 2.3 and by `use_cross_timestep`
        encoder_attention_mask (B, T) of 1 and 0, or what is added to scores, (B, 1|S, T)
        num_frames, height, width, fps, audio_num_frames
                               of the latents, where `video_coords` (B|1, 3, S, 2) and
                               `audio_coords` (B|1, 1, A, 2) are not given
        isolate_modalities     no attention between the streams (modality guidance)
        spatio_temporal_guidance_blocks, perturbation_mask
                               the blocks whose self-attentions are perturbed, in the samples where
                               the mask (B,) or (B, 1, 1) is 0; in all without one. A mask on the
                               CPU is looked at, so that what nobody needs is not computed; one on
                               the GPU is not, since that would wait for it. Without effect on a
                               model that has no perturbed attention (2.0), as in diffusers
        use_cross_timestep     the other stream's sigma modulates the attention between them (2.3)
        video_self_attention_mask
                               (B, S, S), between 0 and 1: how much a token sees of another
        perturbation_configs   one dict for each sample, or the four arguments behind it for all of
                               them: as SGLang's pipelines perturb, see `perturbation.py`
        video_keyframes_mask   (B, S, 1), not zero where the keyframe embedding is added (2.5)

        Nothing waits for the device. Raises ValueError for what does not fit.
        """
        batch, tokens = checked_latents("hidden_states", hidden_states, self.config.in_channels)
        audio_batch, audio_tokens = checked_latents(
            "audio_hidden_states", audio_hidden_states, self.config.audio_in_channels
        )
        if audio_batch != batch:
            raise ValueError(
                f"hidden_states are {batch} samples, audio_hidden_states {audio_batch}."
            )
        if audio_timestep is None:
            if timestep_index is not None or timestep.ndim != 1:
                raise ValueError(
                    "audio_timestep is missing: timesteps of video tokens say nothing of audio's."
                )
            audio_timestep = timestep
        dtype = hidden_states.dtype
        steps = Timesteps.of("timestep", timestep, timestep_index, batch, tokens)
        audio_steps = Timesteps.of(
            "audio_timestep", audio_timestep, audio_timestep_index, batch, audio_tokens
        )
        needed = use_cross_timestep or self.prompt_adaln is not None
        video_sigma = checked_sigma("sigma", sigma, batch, needed=needed)
        other_sigma = checked_sigma(
            "audio_sigma", sigma if audio_sigma is None else audio_sigma, batch, needed=needed
        )
        text_mask = score_bias("encoder_attention_mask", encoder_attention_mask, dtype)
        audio_text_mask = score_bias(
            "audio_encoder_attention_mask", audio_encoder_attention_mask, dtype
        )
        self_mask = None
        if video_self_attention_mask is not None:
            self_mask = ((1 - video_self_attention_mask.to(dtype)) * -10000.0).unsqueeze(1)

        video_spans = self._video_spans(
            video_coords, (num_frames, height, width), fps, batch, tokens, hidden_states.device
        )
        audio_spans = self._audio_spans(
            audio_coords, audio_num_frames, batch, audio_tokens, hidden_states.device
        )
        text, audio_text = self._texts(encoder_hidden_states, audio_encoder_hidden_states, batch)

        video = self.proj_in(hidden_states)
        audio = self.audio_proj_in(audio_hidden_states)
        if video_keyframes_mask is not None and hasattr(self, "keyframes_abs_pos_embedding"):
            marker = (video_keyframes_mask > 0).to(dtype)
            video = video + marker * self.keyframes_abs_pos_embedding

        ada, embedded = self.time_embed(steps, dtype)
        audio_ada, audio_embedded = self.audio_time_embed(audio_steps, dtype)
        v = Conditioning(
            ada=ada,
            cross=self._cross(
                other_sigma if use_cross_timestep and other_sigma else steps,
                self.av_cross_attn_video_scale_shift,
                self.av_cross_attn_video_a2v_gate,
                dtype,
            ),
            prompt=_prompt(self.prompt_adaln, video_sigma, dtype),
            index=steps.index,
            text=text,
            text_mask=text_mask,
            self_mask=self_mask,
            rotary=self.rotary.tables(video_spans),
            cross_rotary=self.rotary.cross_tables(video_spans),
        )
        a = Conditioning(
            ada=audio_ada,
            cross=self._cross(
                video_sigma if use_cross_timestep and video_sigma else audio_steps,
                self.av_cross_attn_audio_scale_shift,
                self.av_cross_attn_audio_v2a_gate,
                dtype,
            ),
            prompt=_prompt(self.audio_prompt_adaln, other_sigma, dtype),
            index=audio_steps.index,
            text=audio_text,
            text_mask=audio_text_mask,
            self_mask=None,
            rotary=self.audio_rotary.tables(audio_spans),
            cross_rotary=self.audio_rotary.cross_tables(audio_spans),
        )

        both = tuple(spatio_temporal_guidance_blocks or ())
        perturbed = perturbed_blocks(
            self.config.num_layers,
            batch,
            video,
            configs=perturbation_configs,
            blocks=(
                (*both, *skip_video_self_attn_blocks),
                (*both, *skip_audio_self_attn_blocks),
            ),
            mask=perturbation_mask if both else None,
            isolated=(
                isolate_modalities or disable_a2v_cross_attn,
                isolate_modalities or disable_v2a_cross_attn,
            ),
        )
        for block, told in zip(self.transformer_blocks, perturbed, strict=True):
            video, audio = block(video, audio, v, a, told)
        return (
            self.proj_out(_normed(video, self.scale_shift_table, embedded, steps.index)),
            self.audio_proj_out(
                _normed(audio, self.audio_scale_shift_table, audio_embedded, audio_steps.index)
            ),
        )

    # -- what blocks are told -----------------------------------------------------------------

    def _video_spans(
        self, coords: Tensor | None, sizes: tuple[int | None, ...], fps: float, batch: int,
        tokens: int, device: torch.device,
    ) -> Tensor:  # fmt: skip
        frames, height, width = sizes
        if coords is None:
            if frames is None or height is None or width is None:
                raise ValueError("give num_frames, height and width, or video_coords.")
            coords = coords_of_video(
                frames, height, width, fps=fps, device=device, **self.config.video_positions
            )
        return checked_coords("video_coords", coords, (3, tokens), batch)

    def _audio_spans(
        self, coords: Tensor | None, frames: int | None, batch: int, tokens: int,
        device: torch.device,
    ) -> Tensor:  # fmt: skip
        if coords is None:
            if frames is None:
                raise ValueError("give audio_num_frames or audio_coords.")
            coords = coords_of_audio(frames, device=device, **self.config.audio_positions)
        return checked_coords("audio_coords", coords, (1, tokens), batch)

    def _texts(self, text: Tensor, audio_text: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        checked_text("encoder_hidden_states", text, batch, self.config.text_channels[0])
        checked_text("audio_encoder_hidden_states", audio_text, batch, self.config.text_channels[1])
        if not hasattr(self, "caption_projection"):
            return text, audio_text
        return self.caption_projection(text), self.audio_caption_projection(audio_text)

    def _cross(
        self, steps: Timesteps, scale_shift: Modulation, gate: Modulation, dtype: torch.dtype
    ) -> Tensor:
        """Modulation of attention between the streams, (…, 5, D): a block's table has five rows."""
        gates, _ = gate(steps.times(self.config.gate_factor), dtype)
        return torch.cat([scale_shift(steps, dtype)[0], gates], dim=-2)


def _prompt(
    modulation: Modulation | None, sigma: Timesteps | None, dtype: torch.dtype
) -> Tensor | None:
    return None if modulation is None or sigma is None else modulation(sigma, dtype)[0]


def _normed(x: Tensor, table: Tensor, embedded: Tensor, index: Tensor | None) -> Tensor:
    """The last norm: LayerNorm, modulated by the model's own table and the embedded timesteps."""
    shift, scale = (table + embedded.unsqueeze(-2)).unbind(-2)
    return layer_norm_modulate(x, scale, shift, index=index_for(index, scale), eps=1e-6)
