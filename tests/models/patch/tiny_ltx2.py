"""LTX-2 of diffusers at a size that a test can afford: transformers, and whole pipelines that
encode their prompts. Needs no network.

Everything is real but for its size: Gemma 3 encodes prompts, of a vocabulary of seven words.
"""

import inspect

import pytest
import torch
from jitd.tools.examples import tiny
from jitd.tools.examples.steps import seeded

from ..ltx2.small import BASE, VARIANTS

WORDS = "a red cat walks over the snow"

_TEXT = {
    "vocab_size": 64,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 12,
    "sliding_window": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
_TOKENS_OF_IMAGES = {
    "mm_tokens_per_image": 1,
    "boi_token_index": 60,
    "eoi_token_index": 61,
    "image_token_index": 62,
}


def transformer(variant, *, dtype=torch.float32, device="cpu", **changes):
    """diffusers' transformer of `small.VARIANTS`, in eval mode; the same weights each time. Skips
    where it has none such.
    """
    diffusers = pytest.importorskip("diffusers")  # here: it takes seconds to import
    theirs = diffusers.LTX2VideoTransformer3DModel
    config = {**BASE, **VARIANTS[variant], **changes}
    if unknown := config.keys() - inspect.signature(theirs).parameters.keys():
        pytest.skip(f"diffusers {diffusers.__version__} knows no {', '.join(sorted(unknown))}")
    torch.manual_seed(0)
    return theirs(**config).to(device, dtype).eval()


def pipeline(version, *, i2v=False, dtype=torch.float32, device="cpu"):
    """The example's pipeline with a text encoder, and arguments of a call.

    2.0 is guided by its prompt; 2.3 also by perturbed and by isolated forwards (STG, modality).
    """
    stock, given = tiny.ltx2(version, i2v=i2v, dtype=dtype, device=device)
    text = {"text_encoder": _text_encoder().to(device, dtype), "tokenizer": _tokenizer()}
    made = type(stock)(**{**stock.components, **text})
    made.set_progress_bar_config(disable=True)
    given = {name: value for name, value in given.items() if "prompt" not in name}
    given |= {"prompt": "a red cat walks", "negative_prompt": "snow", "max_sequence_length": 8}
    if version == "2.0":
        alone = {"stg_scale": 0.0, "modality_scale": 1.0, "guidance_rescale": 0.0}
        given |= alone | {f"audio_{name}": value for name, value in alone.items()}
        given["spatio_temporal_guidance_blocks"] = None
    return made, given


def latents(made, given):
    """Latents of video and audio; the same noise each time."""
    return made(**given, **seeded(), output_type="latent")


def _text_encoder():
    transformers = pytest.importorskip("transformers")
    config = transformers.Gemma3Config(
        text_config=_TEXT, vision_config=_VISION, **_TOKENS_OF_IMAGES
    )
    torch.manual_seed(0)
    return transformers.Gemma3ForConditionalGeneration(config).eval()


def _tokenizer():
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>"}
    words = [*special.values(), "<unk>", *WORDS.split()]
    model = tokenizers.models.WordLevel({w: n for n, w in enumerate(words)}, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", model_max_length=16, **special
    )
