"""Tiny diffusers models and pipelines with random weights, as a user would have them."""

import inspect

import pytest
import torch
from torch import nn

from ..helios import small as helios
from ..ltx2 import small as ltx2
from ..ltx2 import tiny as upsampler
from ..zimage import small as zimage
from . import tiny_helios, tiny_ltx2, tiny_zimage

TRANSFORMERS = ("ltx2_20", "ltx2_23", "helios", "zimage")
MODELS = ("upsampler", *TRANSFORMERS)


def build(name, *, one_layer=False):
    """A model in eval mode with the same weights each time, and a call of it (its keywords)."""
    fewer = {"n_layers" if name == "zimage" else "num_layers": 1} if one_layer else {}
    match name:
        case "upsampler":
            model, call = _upsampler(), {"hidden_states": upsampler.latents()}
        case "helios":
            model, call = tiny_helios.transformer(**fewer), helios.inputs()
        case "zimage":
            model, call = tiny_zimage.transformer(**fewer), zimage.inputs()
        case _:
            version = {"ltx2_20": "2.0", "ltx2_23": "2.3"}[name]
            model, call = tiny_ltx2.transformer(version, **fewer), ltx2.inputs(version)
    for parameter in model.parameters():  # those that begin as zeros would hide what they scale
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    if "return_dict" in inspect.signature(type(model).forward).parameters:
        call["return_dict"] = False
    return model, call


def _upsampler():
    diffusers = pytest.importorskip("diffusers.pipelines.ltx2")
    config = {**upsampler.BASE, **upsampler.VARIANTS["x2_23"], "num_blocks_per_stage": 1}
    torch.manual_seed(0)
    return diffusers.LTX2LatentUpsamplerModel(**config).eval()


def run(model, call):
    """The tensors that a call of the model gives, without gradients."""
    with torch.no_grad():
        return tensors(model(**call))


def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    if hasattr(value, "to_tuple"):
        return tensors(value.to_tuple())
    return [tensor for item in value for tensor in tensors(item)]


def same(ours, stock):
    """Whether results have the same bits."""
    return len(ours) == len(stock) and all(map(torch.equal, ours, stock))


def pipeline(**components):
    """A diffusers pipeline of these components alone, which are not called through it."""
    diffusers = pytest.importorskip("diffusers")

    class Pipeline(diffusers.DiffusionPipeline):
        model_cpu_offload_seq = "->".join(components)

        def __init__(self, **components):
            super().__init__()
            self.register_modules(**components)

    # Its `components` are those that the constructor names.
    parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    parameters += [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY) for n in components]
    Pipeline.__init__.__signature__ = inspect.Signature(parameters)
    return Pipeline(**components)
