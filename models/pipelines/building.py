"""The models of a folder on the meta device, in the dtypes that `from_pretrained` gives them."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .folder import Folder, Part

__all__ = ["build", "class_named", "made", "refused", "scheduler_of"]

log = logging.getLogger("jitd")


def build(folder: Folder, dtype: torch.dtype, vae_dtype: torch.dtype) -> Mapping[str, nn.Module]:
    """Every part, without memory. Raises ValueError for a config that its class does not take."""
    return {
        name: _model(part, vae_dtype if name == "vae" else dtype)
        for name, part in folder.parts.items()
    }


def _model(part: Part, dtype: torch.dtype) -> nn.Module:
    cls = class_named(part.cls)
    try:
        return made(cls, part.config, dtype, "meta")
    except Exception as error:  # code of others, on a config of the user's
        raise refused(f"{part.cls} does not take its config", error) from error


def refused(what: str, error: Exception) -> ValueError:
    """What to say of models of others that raised over what the user gave them. Where they did is
    logged at the level debug."""
    log.debug("--diffusers: %s", what, exc_info=error)
    kind, text = type(error).__name__, str(error).strip()
    return ValueError(f"--diffusers: {what}: {kind}{f': {text}' if text else ''}")


def made(
    cls: Any, config: Mapping[str, Any], dtype: torch.dtype, device: torch.device | str
) -> nn.Module:
    """A model of diffusers with random weights, in eval mode, without gradients, in the dtypes that
    `from_pretrained` gives it. Raises what its class does for a config that it does not take.
    """
    device, before = torch.device(device), torch.get_default_dtype()
    # As `from_pretrained` does: tables that a model makes in fp32 stay so, and parameters become
    # `dtype` but for those that the class keeps.
    torch.set_default_dtype(dtype)
    try:
        with device:
            model: nn.Module = cls.from_config(dict(config))
    finally:
        torch.set_default_dtype(before)
    kept = set(getattr(cls, "_keep_in_fp32_modules", None) or ())
    for path, tensor in (*model.named_parameters(), *model.named_buffers()):
        if isinstance(tensor, nn.Parameter) and tensor.is_floating_point():
            wide = bool(kept.intersection(path.split(".")))
            tensor.data = tensor.data.to(torch.float32 if wide else dtype)
        if tensor.device.type != device.type:  # made from numbers, by one that names the CPU
            owner, _, leaf = path.rpartition(".")
            model.get_submodule(owner)._buffers[leaf] = tensor.to(device)
    return model.eval().requires_grad_(False)


def scheduler_of(folder: Folder, default: str) -> Any:
    """The scheduler that the folder names, else the default one."""
    part = folder.scheduler or Part(default, {})
    return class_named(part.cls).from_config(dict(part.config))


def class_named(name: str) -> Any:
    """A class of diffusers. Raises ValueError where this release has none of that name."""
    import diffusers  # noqa: PLC0415  (seconds, for those who need it)
    from diffusers.pipelines import ltx2  # noqa: PLC0415

    found = getattr(diffusers, name, None) or getattr(ltx2, name, None)
    if found is None:
        raise ValueError(f"diffusers {diffusers.__version__} has no {name}; a newer one may.")
    return found
