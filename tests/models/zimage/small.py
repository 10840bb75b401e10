"""Small transformers of Z-Image, and inputs for them. Shared by the tests here."""

import torch
from jitd.jit.record import record
from jitd.models.zimage.transformer import ZImageTransformer

BASE = {
    "in_channels": 4,
    "dim": 64,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "n_heads": 4,
    "n_kv_heads": 4,
    "cap_feat_dim": 24,
    "axes_dims": (8, 4, 4),
    "axes_lens": (256, 32, 32),
}
# Sizes of latents and lengths of captions, for each sample.
ONE = (((8, 12), 16),)
BATCHES = {
    "one": ONE,
    "a full caption": (((16, 8), 32),),
    "two alike": (((8, 12), 40), ((8, 12), 40)),
    "captions of two lengths": (((8, 12), 16), ((8, 12), 40)),
    "images of two sizes": (((8, 12), 16), ((16, 16), 30)),
    "three": (((16, 16), 64), ((8, 12), 1), ((8, 8), 33)),
}


def build(*, dtype=torch.float32, device="cpu", **changes):
    """A small transformer in eval mode; the same weights each time. Its fillers are not zero."""
    torch.manual_seed(0)
    model = ZImageTransformer(**{**BASE, **changes})
    with torch.no_grad():
        for parameter in model.parameters():  # weights of norms begin as ones, fillers as zeros
            if parameter.ndim == 1 or parameter.shape[0] == 1:
                parameter.normal_(mean=0.5, std=0.3)
    return model.to(device, dtype).eval()


def inputs(batch=ONE, *, dtype=torch.float32, device="cpu"):
    """Arguments of forward, the same each time."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape):
        return torch.randn(shape, generator=generator).to(device, dtype)

    return {
        "x": [random(4, 1, *size) for size, _ in batch],
        "t": torch.tensor([0.3, 0.55, 0.9], device=device)[: len(batch)],
        "cap_feats": [random(length, 24) for _, length in batch],
    }


def run(model, given):
    """The result of a forward without gradients."""
    with torch.no_grad():
        return model(**given)


def recorded(model, given):
    """Signature -> calls of one forward."""
    with record() as workload:
        run(model, given)
    return dict(workload.counts)
