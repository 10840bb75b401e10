"""Helios of diffusers at a size that a test can afford: transformers, and whole pipelines with
random weights. Needs no network.
"""

import torch
from jitd.tools.examples import tiny
from jitd.tools.examples.steps import seeded

from ..helios.small import BASE, VARIANTS, cast


def transformer(variant="base", dtype=torch.float32, device="cpu", **changes):
    """diffusers' transformer in eval mode; the same weights each time. No norm is an identity."""
    import diffusers  # noqa: PLC0415

    torch.manual_seed(7)
    model = diffusers.HeliosTransformer3DModel(**{**BASE, **VARIANTS[variant], **changes})
    for parameter in model.parameters():  # scales of keys and affine norms begin as ones and zeros
        torch.nn.init.normal_(parameter, std=0.3) if parameter.ndim == 1 else None
    return cast(model, dtype).to(device).eval()


def pipeline(*, pyramid=False, dtype=torch.float32, device="cpu"):
    """The example's pipeline with a transformer whose norms matter, and arguments of a call;
    `pyramid` as the distilled models have it, else guided.
    """
    made, given = tiny.helios(pyramid=pyramid, dtype=dtype, device=device)
    channels = {name: made.transformer.config[name] for name in ("in_channels", "text_dim")}
    mine = transformer(dtype=dtype, device=device, out_channels=channels["in_channels"], **channels)
    made.register_modules(transformer=mine)
    return made, given


def generate(made, given):
    """The video of a pipeline, (1, frames, 3, height, width); the same noise each time."""
    return made(**given, **seeded(), output_type="pt")[0]
