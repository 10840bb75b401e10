"""The config of Z-Image's transformer, with the names that diffusers gives it. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["TransformerConfig"]


@dataclass(frozen=True)
class TransformerConfig:
    """As `ZImageTransformer2DModel` of diffusers takes it (0.42.1), whose defaults are those of
    Z-Image and Z-Image-Turbo.

    Raises ValueError for what neither has: images as a condition (SigLIP), fewer heads of keys than
    of queries, queries and keys that are not normalised; and for what does not fit together.
    """

    all_patch_size: Sequence[int] = (2,)
    all_f_patch_size: Sequence[int] = (1,)
    in_channels: int = 16
    dim: int = 3840
    n_layers: int = 30
    n_refiner_layers: int = 2
    n_heads: int = 30
    n_kv_heads: int = 30
    norm_eps: float = 1e-5
    qk_norm: bool = True
    cap_feat_dim: int = 2560
    siglip_feat_dim: int | None = None
    rope_theta: float = 256.0
    t_scale: float = 1000.0
    axes_dims: Sequence[int] = (32, 48, 48)
    axes_lens: Sequence[int] = (1024, 512, 512)

    def __post_init__(self) -> None:
        only = {"siglip_feat_dim": None, "qk_norm": True, "n_kv_heads": self.n_heads}
        for name, allowed in only.items():
            if getattr(self, name) != allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed is {allowed!r}.")
        if len(self.all_patch_size) != len(self.all_f_patch_size):
            raise ValueError(
                f"all_patch_size is {tuple(self.all_patch_size)}, all_f_patch_size "
                f"{tuple(self.all_f_patch_size)}; allowed are as many of the one as of the other."
            )
        if sum(self.axes_dims) * self.n_heads != self.dim or any(n % 2 for n in self.axes_dims):
            raise ValueError(
                f"axes_dims is {tuple(self.axes_dims)}; allowed are even numbers that make up a "
                f"head, {self.dim} / {self.n_heads} channels."
            )

    @property
    def modulation_dim(self) -> int:
        """Channels of an embedded timestep."""
        return min(self.dim, 256)

    @property
    def patches(self) -> list[tuple[int, int]]:
        """(side, frames) of the patches that the model knows."""
        return list(zip(self.all_patch_size, self.all_f_patch_size, strict=True))
