"""Small transformers of each variant, and inputs for them. Shared by the tests here."""

import torch
from jitd.jit.record import record
from jitd.models.ltx2.transformer import LTX2Transformer

BASE = {
    "in_channels": 8,
    "out_channels": 8,
    "num_attention_heads": 4,
    "attention_head_dim": 16,
    "cross_attention_dim": 64,
    "audio_in_channels": 8,
    "audio_out_channels": 8,
    "audio_num_attention_heads": 4,
    "audio_attention_head_dim": 8,
    "audio_cross_attention_dim": 32,
    "num_layers": 2,
    "caption_channels": 24,
    "rope_type": "split",
}
_23 = {
    "gated_attn": True,
    "cross_attn_mod": True,
    "audio_gated_attn": True,
    "audio_cross_attn_mod": True,
    "use_prompt_embeddings": False,
    "perturbed_attn": True,
}
VARIANTS = {
    "2.0": {},
    "2.3": _23,
    "2.5": {**_23, "ff_bias": False, "use_keyframes_abs_pos_embedding": True},
}
FRAMES, HEIGHT, WIDTH, AUDIO, TEXT = 3, 4, 5, 6, 8
TOKENS = FRAMES * HEIGHT * WIDTH
FOUR = (725.0, 0.0, 362.5, 90.0)


def build(variant, *, dtype=torch.float32, device="cpu", **changes):
    """A small transformer in eval mode; the same weights each time."""
    torch.manual_seed(0)
    model = LTX2Transformer(**{**BASE, **VARIANTS[variant], **changes})
    return model.to(device, dtype).eval()


def inputs(variant, *, dtype=torch.float32, device="cpu", batch=2, timesteps="sample"):
    """Arguments of forward, the same each time. The prompt of the second sample is padded.

    `timesteps` are given by "sample", by "token", or as "rows". The last two mean the same: four
    distinct ones, since the CPU's matrix product of fewer rows has other bits in fp32.
    """
    text = (24, 24) if variant == "2.0" else (64, 32)
    generator = torch.Generator().manual_seed(1)

    def random(*shape):
        return torch.randn(shape, generator=generator).to(device, dtype)

    mask = torch.ones(batch, TEXT, device=device)
    mask[1:, TEXT - 3 :] = 0
    given = {
        "hidden_states": random(batch, TOKENS, 8),
        "audio_hidden_states": random(batch, AUDIO, 8),
        "encoder_hidden_states": random(batch, TEXT, text[0]),
        "audio_encoder_hidden_states": random(batch, TEXT, text[1]),
        "timestep": torch.tensor(FOUR[::2], device=device)[:batch],
        "audio_timestep": torch.tensor(FOUR[::2], device=device)[:batch],
        "sigma": torch.tensor(FOUR[::2], device=device)[:batch],
        "encoder_attention_mask": mask,
        "audio_encoder_attention_mask": mask.clone(),
        "num_frames": FRAMES,
        "height": HEIGHT,
        "width": WIDTH,
        "audio_num_frames": AUDIO,
        "use_cross_timestep": variant != "2.0",
    }
    if timesteps != "sample":
        rows = torch.tensor(FOUR, device=device)
        index = torch.randint(0, 4, (batch, TOKENS), generator=generator).to(device, torch.int32)
        given["timestep"] = rows if timesteps == "rows" else rows[index.long()]
        given |= {"timestep_index": index} if timesteps == "rows" else {}
    return given


def run(model, given, **more):
    """(video, audio) of a forward without gradients."""
    with torch.no_grad():
        return model(**given, **more)


def recorded(model, given, **more):
    """Signature -> calls of one forward."""
    with record() as workload:
        run(model, given, **more)
    return dict(workload.counts)
