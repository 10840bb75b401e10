"""The config of Helios' transformer, with the names that diffusers gives it. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["TransformerConfig"]

_ONLY = {
    "patch_size": (1, 2, 2),
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "added_kv_proj_dim": None,
}
_SCALES = ("scalar", "per_head")


@dataclass(frozen=True)
class TransformerConfig:
    """As `HeliosTransformer3DModel` of diffusers takes it (0.42.1), whose defaults are the released
    models'.

    Raises ValueError for what no released model has: other patches, no norm in front of
    cross-attention, other norms of queries and keys, keys of an image; and for rotary axes that are
    not a head together.
    """

    patch_size: Sequence[int] = (1, 2, 2)
    num_attention_heads: int = 40
    attention_head_dim: int = 128
    in_channels: int = 16
    out_channels: int | None = 16
    text_dim: int = 4096
    freq_dim: int = 256
    ffn_dim: int = 13824
    num_layers: int = 40
    cross_attn_norm: bool = True
    qk_norm: str | None = "rms_norm_across_heads"
    eps: float = 1e-6
    added_kv_proj_dim: int | None = None
    rope_dim: Sequence[int] = (44, 42, 42)
    rope_theta: float = 10000.0
    guidance_cross_attn: bool = True
    zero_history_timestep: bool = True
    has_multi_term_memory_patch: bool = True
    is_amplify_history: bool = False
    history_scale_mode: str = "per_head"

    def __post_init__(self) -> None:
        for name, allowed in _ONLY.items():
            value = getattr(self, name)
            if (tuple(value) if isinstance(value, list) else value) != allowed:
                raise ValueError(f"{name} is {value!r}; allowed is {allowed!r}.")
        if self.history_scale_mode not in _SCALES:
            raise ValueError(
                f"history_scale_mode is {self.history_scale_mode!r}; allowed are "
                f"{', '.join(map(repr, _SCALES))}."
            )
        if sum(self.rope_dim) != self.attention_head_dim or any(n % 2 for n in self.rope_dim):
            raise ValueError(
                f"rope_dim is {tuple(self.rope_dim)}; allowed are three even numbers that make up "
                f"a head of {self.attention_head_dim} channels."
            )

    @property
    def dim(self) -> int:
        return self.num_attention_heads * self.attention_head_dim
