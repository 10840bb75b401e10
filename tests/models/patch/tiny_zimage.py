"""Z-Image of diffusers at a size that a test can afford: transformers, and a whole pipeline with
random weights. Needs no network.
"""

import torch
from jitd.tools.examples import tiny
from jitd.tools.examples.steps import seeded

from ..zimage.small import BASE


def transformer(dtype=torch.float32, device="cpu", **changes):
    """diffusers' transformer in eval mode; the same weights each time. Fillers are not zero."""
    import diffusers  # noqa: PLC0415

    torch.manual_seed(7)
    model = diffusers.ZImageTransformer2DModel(**{**BASE, **changes})
    with torch.no_grad():
        for parameter in model.parameters():  # weights of norms begin as ones, fillers as zeros
            if parameter.ndim == 1 or parameter.shape[0] == 1:
                parameter.normal_(mean=0.5, std=0.3)
    return model.to(device, dtype).eval()


def omni(dtype=torch.float32, device="cpu"):
    """Arguments of a forward with a given image beside the one that is denoised, for each of two
    samples; some tokens are noisy and some are not.
    """
    generator = torch.Generator().manual_seed(1)

    def random(*shape):
        return torch.randn(shape, generator=generator).to(device, dtype)

    return {
        "x": [[random(16, 1, 8, 8), random(16, 1, *size)] for size in ((8, 12), (8, 8))],
        "t": torch.tensor([0.3, 0.55], device=device),
        "cap_feats": [[random(9, 24), random(5, 24), random(3, 24)] for _ in range(2)],
        "siglip_feats": [[random(3, 4, 20), None] for _ in range(2)],
        "image_noise_mask": [[0, 1], [0, 1]],
    }


def pipeline(*, dtype=torch.float32, device="cpu"):
    """The example's pipeline with a transformer whose norms matter, and arguments of a call: guided
    images of two captions, whose lengths differ.
    """
    made, given = tiny.zimage(dtype=dtype, device=device)
    channels = {name: made.transformer.config[name] for name in ("in_channels", "cap_feat_dim")}
    made.register_modules(transformer=transformer(dtype, device, **channels))
    (prompt,), (negative,) = given["prompt_embeds"], given["negative_prompt_embeds"]
    given["prompt_embeds"] = [prompt[:13], prompt[:10]]
    given["negative_prompt_embeds"] = [negative[:11], negative[:8]]
    return made, given | {"height": 32, "width": 48}


def generate(made, given):
    """Images of a pipeline, (2, 3, height, width); the same noise each time."""
    return made(**given, **seeded(), output_type="pt")[0]
