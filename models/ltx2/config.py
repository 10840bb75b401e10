"""The config of LTX-2's transformer, with the names that diffusers gives it. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["TransformerConfig"]

_ONLY = {
    "activation_fn": "gelu-approximate",
    "qk_norm": "rms_norm_across_heads",
    "rope_type": "split",
    "norm_elementwise_affine": False,
}


@dataclass(frozen=True)
class TransformerConfig:
    """As `LTX2VideoTransformer3DModel` of diffusers takes it (0.42.1), whose defaults are LTX-2.0
    but for `rope_type`, which is "split" in every released model.

    Raises ValueError for what no released model has: another activation or norm than theirs,
    interleaved rotary embeddings, norms with weights, an attention between the streams that is not
    of the audio stream's width.
    """

    in_channels: int = 128
    out_channels: int | None = 128
    patch_size: int = 1
    patch_size_t: int = 1
    num_attention_heads: int = 32
    attention_head_dim: int = 128
    cross_attention_dim: int = 4096
    vae_scale_factors: Sequence[int] = (8, 32, 32)
    pos_embed_max_pos: int = 20
    base_height: int = 2048
    base_width: int = 2048
    gated_attn: bool = False
    cross_attn_mod: bool = False
    audio_in_channels: int = 128
    audio_out_channels: int | None = 128
    audio_patch_size: int = 1
    audio_patch_size_t: int = 1
    audio_num_attention_heads: int = 32
    audio_attention_head_dim: int = 64
    audio_cross_attention_dim: int = 2048
    audio_scale_factor: int = 4
    audio_pos_embed_max_pos: int = 20
    audio_sampling_rate: int = 16000
    audio_hop_length: int = 160
    audio_gated_attn: bool = False
    audio_cross_attn_mod: bool = False
    num_layers: int = 48
    activation_fn: str = "gelu-approximate"
    qk_norm: str = "rms_norm_across_heads"
    norm_elementwise_affine: bool = False
    norm_eps: float = 1e-6
    caption_channels: int = 3840
    attention_bias: bool = True
    attention_out_bias: bool = True
    rope_theta: float = 10000.0
    rope_double_precision: bool = True
    causal_offset: int = 1
    timestep_scale_multiplier: int = 1000
    cross_attn_timestep_scale_multiplier: int = 1000
    rope_type: str = "split"
    use_prompt_embeddings: bool = True
    perturbed_attn: bool = False
    ff_bias: bool = True
    audio_ff_bias: bool = True
    use_prompt_adaln_single: bool = True
    use_keyframes_abs_pos_embedding: bool = False

    def __post_init__(self) -> None:
        for name, allowed in _ONLY.items():
            if getattr(self, name) != allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed is {allowed!r}.")
        if self.audio_cross_attention_dim != self.audio_dim:
            raise ValueError(
                f"audio_cross_attention_dim is {self.audio_cross_attention_dim}; allowed is the "
                f"audio stream's width, {self.audio_dim}: in it the streams attend to each other."
            )

    @property
    def heads(self) -> tuple[int, int]:
        """How many heads the video stream has, and the channels of each."""
        return self.num_attention_heads, self.attention_head_dim

    @property
    def audio_heads(self) -> tuple[int, int]:
        """The same of the audio stream, and of attention between the streams."""
        return self.audio_num_attention_heads, self.audio_attention_head_dim

    @property
    def dim(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @property
    def audio_dim(self) -> int:
        return self.audio_num_attention_heads * self.audio_attention_head_dim

    @property
    def modulates_prompts(self) -> bool:
        return self.cross_attn_mod or self.audio_cross_attn_mod

    @property
    def text_channels(self) -> tuple[int, int]:
        """Channels of the prompt that the video and the audio stream are given."""
        if self.use_prompt_embeddings:
            return self.caption_channels, self.caption_channels
        return self.cross_attention_dim, self.audio_cross_attention_dim

    @property
    def gate_factor(self) -> float:
        """Of the timesteps from which the gates between the streams are made."""
        return self.cross_attn_timestep_scale_multiplier / self.timestep_scale_multiplier

    @property
    def video_positions(self) -> dict[str, Any]:
        """Arguments of `rope.video_coords`."""
        return {
            "patch": (self.patch_size_t, self.patch_size, self.patch_size),
            "scale": tuple(self.vae_scale_factors),
            "causal_offset": self.causal_offset,
        }

    @property
    def audio_positions(self) -> dict[str, Any]:
        """Arguments of `rope.audio_coords`."""
        return {
            "patch": self.audio_patch_size_t,
            "scale": self.audio_scale_factor,
            "hop_length": self.audio_hop_length,
            "sampling_rate": self.audio_sampling_rate,
            "causal_offset": self.causal_offset,
        }
