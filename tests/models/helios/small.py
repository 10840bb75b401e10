"""Small transformers of Helios, and inputs for them. Shared by the tests here."""

import torch
from jitd.jit.record import record
from jitd.models.helios.transformer import KEPT_IN_FP32, HeliosTransformer

BASE = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 32,
    "ffn_dim": 64,
    "num_layers": 2,
    "rope_dim": (4, 6, 6),
}
VARIANTS = {
    "base": {},
    "amplified": {"is_amplify_history": True},
    "amplified alike": {"is_amplify_history": True, "history_scale_mode": "scalar"},
    "same timestep": {"zero_history_timestep": False},
    "prompt for all": {"guidance_cross_attn": False},
}
FRAMES, HEIGHT, WIDTH, TEXT = 3, 8, 12, 6
HISTORIES = {"none": (), "short": (2,), "all": (2, 2, 16), "odd": (2, 3, 5)}
CHUNK_TOKENS = FRAMES * (HEIGHT // 2) * (WIDTH // 2)


def cast(model, dtype):
    """A model of ours or of diffusers with its parameters in dtype but for those that stay fp32."""
    for name, parameter in model.named_parameters():
        kept = any(part in KEPT_IN_FP32 for part in name.split("."))
        parameter.data = parameter.data.to(torch.float32 if kept else dtype)
    return model


def build(variant="base", *, dtype=torch.float32, device="cpu", **changes):
    """A small transformer in eval mode; the same weights each time."""
    torch.manual_seed(0)
    model = HeliosTransformer(**{**BASE, **VARIANTS[variant], **changes})
    return cast(model.to(device), dtype).eval()


def inputs(history="all", *, dtype=torch.float32, device="cpu", batch=1, pixels=(HEIGHT, WIDTH)):
    """Arguments of forward, the same each time; the chunk's latents of `pixels`."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape):
        return torch.randn(shape, generator=generator).to(device, dtype)

    frames = HISTORIES[history]
    short, mid, long = (*frames, 0, 0, 0)[:3]
    at = torch.arange(long + mid + short + FRAMES, device=device)
    times = at[None].split([long, mid, short, FRAMES], dim=1)
    given = {
        "hidden_states": random(batch, 4, FRAMES, *pixels),
        "timestep": torch.tensor([725, 310], device=device)[:batch],
        "encoder_hidden_states": random(batch, TEXT, 16),
        "indices_hidden_states": times[3],
    }
    for name, count, when in zip(("short", "mid", "long"), frames, times[2::-1], strict=False):
        given[f"latents_history_{name}"] = random(batch, 4, count, HEIGHT, WIDTH)
        given[f"indices_latents_history_{name}"] = when
    return given


def run(model, given):
    """The result of a forward without gradients."""
    with torch.no_grad():
        return model(**given)


def recorded(model, given):
    """Signature -> calls of one forward."""
    with record() as workload:
        run(model, given)
    return dict(workload.counts)
