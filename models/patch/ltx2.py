"""Recipes for LTX-2's transformer, as diffusers has it: its blocks and their attentions.

A block is our own one's body (`ltx2/fused.py`) over diffusers' submodules. Operands are views of
what diffusers makes of timesteps, be it of samples (B, 1, 6 | 9, D) or of tokens (B, S, 6 | 9, D).
Its attentions are called, and are sites of their own: they may be left, for a processor that is
not diffusers', while the block is not.

The last norms, one a forward, have no module that holds them together with their modulation.
"""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from ..ltx2.fused import Side, advanced
from ..ltx2.rope import Tables
from .ltx2_attention import ATTENTION
from .recipe import DTYPES, Recipe, name_of, numerics

__all__ = ["RECIPES"]

_HOME = "diffusers.models.transformers.transformer_ltx2"
_NORM = "diffusers.models.normalization.RMSNorm"

_NORMS = (
    "norm1", "norm2", "norm3", "audio_to_video_norm",
    "audio_norm1", "audio_norm2", "audio_norm3", "video_to_audio_norm",
)  # fmt: skip


def _block(
    module: Any,
    hidden_states: Tensor,
    audio_hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    audio_encoder_hidden_states: Tensor,
    temb: Tensor,
    temb_audio: Tensor,
    temb_ca_scale_shift: Tensor,
    temb_ca_audio_scale_shift: Tensor,
    temb_ca_gate: Tensor,
    temb_ca_audio_gate: Tensor,
    temb_prompt: Tensor | None = None,
    temb_prompt_audio: Tensor | None = None,
    video_rotary_emb: Tables | None = None,
    audio_rotary_emb: Tables | None = None,
    ca_video_rotary_emb: Tables | None = None,
    ca_audio_rotary_emb: Tables | None = None,
    encoder_attention_mask: Tensor | None = None,
    audio_encoder_attention_mask: Tensor | None = None,
    self_attention_mask: Tensor | None = None,
    audio_self_attention_mask: Tensor | None = None,
    a2v_cross_attention_mask: Tensor | None = None,
    v2a_cross_attention_mask: Tensor | None = None,
    use_a2v_cross_attention: bool = True,
    use_v2a_cross_attention: bool = True,
    perturbation_mask: Tensor | None = None,
    all_perturbed: bool | None = None,
) -> tuple[Tensor, Tensor]:
    batch = hidden_states.shape[0]
    perturbed: dict[str, Any] = {}
    if module.perturbed_attn:
        perturbed = {"perturbation_mask": perturbation_mask, "all_perturbed": all_perturbed}
    v_cross: tuple[Tensor, ...] = ()
    a_cross: tuple[Tensor, ...] = ()
    if use_a2v_cross_attention and use_v2a_cross_attention:
        v_cross = _crossing(
            module, module.video_a2v_cross_attn_scale_shift_table,
            temb_ca_scale_shift, temb_ca_gate, batch,
        )  # fmt: skip
        a_cross = _crossing(
            module, module.audio_a2v_cross_attn_scale_shift_table,
            temb_ca_audio_scale_shift, temb_ca_audio_gate, batch,
        )  # fmt: skip
    v_prompt: tuple[Tensor, ...] = ()
    a_prompt: tuple[Tensor, ...] = ()
    if module.cross_attn_adaln:
        v_prompt = _prompt(module, module.prompt_scale_shift_table, temb_prompt, batch)
        a_prompt = _prompt(module, module.audio_prompt_scale_shift_table, temb_prompt_audio, batch)
    v = Side(
        ada=module.get_mod_params(module.scale_shift_table, temb, batch),
        cross=v_cross,
        prompt=v_prompt,
        index=None,
        text=encoder_hidden_states,
        attn1=_itself(module.attn1, video_rotary_emb, self_attention_mask, perturbed),
        attn2=_other(module.attn2, query_rotary_emb=None, attention_mask=encoder_attention_mask),
        between=_other(
            module.audio_to_video_attn,
            query_rotary_emb=ca_video_rotary_emb,
            key_rotary_emb=ca_audio_rotary_emb,
            attention_mask=a2v_cross_attention_mask,
        ),
        ff=module.ff,
        eps=module.norm1.eps,
        numerics=numerics(module),
    )
    a = Side(
        ada=module.get_mod_params(module.audio_scale_shift_table, temb_audio, batch),
        cross=a_cross,
        prompt=a_prompt,
        index=None,
        text=audio_encoder_hidden_states,
        attn1=_itself(module.audio_attn1, audio_rotary_emb, audio_self_attention_mask, perturbed),
        attn2=_other(
            module.audio_attn2, query_rotary_emb=None, attention_mask=audio_encoder_attention_mask
        ),
        between=_other(
            module.video_to_audio_attn,
            query_rotary_emb=ca_audio_rotary_emb,
            key_rotary_emb=ca_video_rotary_emb,
            attention_mask=v2a_cross_attention_mask,
        ),
        ff=module.audio_ff,
        eps=module.norm1.eps,
        numerics=numerics(module),
    )
    return advanced(hidden_states, audio_hidden_states, v, a)


def _crossing(
    module: Any, table: Tensor, scale_shift: Tensor, gate: Tensor, batch: int
) -> tuple[Tensor, ...]:
    """A block's five operands between the streams, which timesteps make four and one of."""
    four: tuple[Tensor, ...] = module.get_mod_params(table[:4], scale_shift, batch)
    return (*four, *module.get_mod_params(table[4:], gate, batch))


def _prompt(module: Any, table: Tensor, temb: Tensor | None, batch: int) -> tuple[Tensor, ...]:
    """Shift and scale of a prompt; without timestep-dependent ones (LTX-2.5) the table alone."""
    if temb is None:
        return table[None, None].unbind(2)
    operands: tuple[Tensor, ...] = module.get_mod_params(table, temb, batch)
    return operands


# Attentions are called with the stock block's keywords: hooks may look at them.


def _itself(
    attention: nn.Module, rotary: Tables | None, mask: Tensor | None, perturbed: dict[str, Any]
) -> Callable[[Tensor], Tensor]:
    def attend(x: Tensor) -> Tensor:
        out: Tensor = attention(
            hidden_states=x,
            encoder_hidden_states=None,
            query_rotary_emb=rotary,
            attention_mask=mask,
            **perturbed,
        )
        return out

    return attend


def _other(attention: nn.Module, **told: Any) -> Callable[[Tensor, Tensor], Tensor]:
    def attend(x: Tensor, context: Tensor) -> Tensor:
        out: Tensor = attention(x, encoder_hidden_states=context, **told)
        return out

    return attend


def _block_fits(module: Any) -> str | None:
    norms = [getattr(module, name) for name in _NORMS]
    if any(name_of(type(norm)) != _NORM for norm in norms):
        return "norms of another class"
    if any(norm.weight is not None for norm in norms):
        return "norms with weights"
    if len({norm.eps for norm in norms}) > 1:
        return "norms that differ in eps"
    return None


def _block_reads(module: Any) -> Iterator[nn.Module]:
    for name in _NORMS:
        yield getattr(module, name)


def _block_takes(
    module: Any,
    hidden_states: Tensor,
    audio_hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    audio_encoder_hidden_states: Tensor,
    temb: Tensor,
    temb_audio: Tensor,
    temb_ca_scale_shift: Tensor,
    temb_ca_audio_scale_shift: Tensor,
    temb_ca_gate: Tensor,
    temb_ca_audio_gate: Tensor,
    temb_prompt: Tensor | None = None,
    temb_prompt_audio: Tensor | None = None,
    *rest: Any,
    use_a2v_cross_attention: bool = True,
    use_v2a_cross_attention: bool = True,
    **named: Any,
) -> str | None:
    if rest:
        return "positional"
    if use_a2v_cross_attention != use_v2a_cross_attention:
        return "direction"  # no transformer asks for one of them alone
    dtype = hidden_states.dtype
    if dtype not in DTYPES:
        return "dtype"
    for other in (
        audio_hidden_states, encoder_hidden_states, audio_encoder_hidden_states,
        temb, temb_audio, temb_ca_scale_shift, temb_ca_audio_scale_shift,
        temb_ca_gate, temb_ca_audio_gate, temb_prompt, temb_prompt_audio,
        module.scale_shift_table, module.audio_scale_shift_table,
    ):  # fmt: skip
        if other is not None and other.dtype != dtype:
            return "dtype"
    return None


RECIPES: tuple[Recipe, ...] = (
    Recipe(
        cls=f"{_HOME}.LTX2VideoTransformerBlock",
        forward=_block,
        ops=(
            "rms_norm_modulate",
            "gate_residual_rms_norm_modulate",
            "gate_residual_rms_norm_dual_modulate",
            "gate_residual",
            "modulate",
        ),
        sources=frozenset(
            {
                "435d5486df7f1552",  # 0.38.0, 0.39.0
                "62e286b4c3a48027",  # 0.40.0
                "e7c26c6c778ab64f",  # 0.41.0 to 0.42.1
            }
        ),
        relies=(_NORM,),
        fits=_block_fits,
        reads=_block_reads,
        takes=_block_takes,
    ),
    ATTENTION,
)
