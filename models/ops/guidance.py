"""What a model predicts: latents from velocities, and several predictions guided into one.

A sigma is a float that varies, or `sigmas`, a tensor on the device: (1,) or one for each token of
(B, S, D), as (B|1, S|1), which is what image-to-video and captured loops need. Tensors are of one
shape, each of bf16|fp16|fp32|fp64; results are contiguous. Raises ValueError for what does not fit.
"""

from typing import Any

import torch
from torch import Tensor

from ...jit.declare import Cost
from ...jit.op import op
from ...jit.sign import Call, TensorSpec
from .flat_calls import (
    FLOATS,
    alike,
    bucket_flat,
    check_alike,
    main,
    probe_flat,
    reach_flat,
    smaller_flat,
)
from .group_norm_problem import next_power_of_two
from .guidance_variants import PLAIN, TOGETHER, TWO_LAUNCH, X0, sigma_mode
from .modulation import moved_bytes, wide


def _check_sigmas(name: str, call: Call) -> None:
    sigmas: TensorSpec | None = call.sigmas
    if sigmas is None:
        return
    shape = main(call).shape
    tokens = len(shape) == 3 and len(sigmas.shape) == 2
    fits = tokens and all(n in (1, size) for n, size in zip(sigmas.shape, shape, strict=False))
    if sigmas.dtype not in FLOATS or not (fits or sigmas.shape in ((1,), ())):
        raise ValueError(
            f"{name}: sigmas is {sigmas.dtype} {sigmas.shape} beside {shape}; allowed are floats, "
            "(1,), and (B|1, S|1) beside (B, S, D)."
        )


def _bucket(call: Call) -> Call:
    """As `bucket_flat`; with a sigma for each token samples and tokens up to powers of two."""
    if sigma_mode(call) != "rows":
        sigmas = call.sigmas
        one = {} if sigmas is None else {"sigmas": TensorSpec(sigmas.dtype, (1,))}
        return bucket_flat(call).replace(**one)
    batch, tokens, width = main(call).shape
    shape = (next_power_of_two(batch), next_power_of_two(tokens), width)
    changes = {name: TensorSpec(spec.dtype, shape) for name, spec in alike(call).items()}
    sizes = zip(call.sigmas.shape, shape, strict=False)
    rows = tuple(1 if size == 1 else most for size, most in sizes)
    return call.replace(**changes, sigmas=TensorSpec(call.sigmas.dtype, rows))


def _reach(call: Call) -> list[Call]:
    if sigma_mode(call) != "rows":
        return reach_flat(call)
    unaligned = {n: s.like(aligned=False) for n, s in alike(call).items()}
    return [call, call.replace(**unaligned)]


def _probes(call: Call) -> list[Call]:
    return [] if sigma_mode(call) == "rows" else probe_flat(call)


def _smaller(call: Call) -> Call | None:
    return None if sigma_mode(call) == "rows" else smaller_flat(call, _bucket)


def _cost(call: Call) -> Cost:
    tensors = {n: s for n, s in call.tensors.items() if n in alike(call)}
    return Cost(bytes=moved_bytes(tensors) + _result(call).nbytes, flops=8 * main(call).numel)


def _result(call: Call) -> TensorSpec:
    like: TensorSpec = call["x"] or call["cond"]
    return TensorSpec(like.dtype, like.shape)


_RULES: dict[str, Any] = {
    "outputs": lambda call: {"out": _result(call)},
    "cost": _cost,
    "reach": _reach,
    "probes": _probes,
    "smaller": _smaller,
}


# -- velocity_to_x0 ---------------------------------------------------------------------------


def _like_x(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _check_velocity(call: Call) -> None:
    check_alike("velocity_to_x0", call, ["x", "v"])
    _check_sigmas("velocity_to_x0", call)


@op(
    **_RULES,
    bucket=_bucket,
    variants=[X0],
    fake=_like_x,
    check=_check_velocity,
    implied={"v": lambda call: TensorSpec(call.x.dtype, call.x.shape)},
    varies={"sigma": 0.725},
)
def velocity_to_x0(
    x: Tensor, v: Tensor, sigma: float = 1.0, sigmas: Tensor | None = None
) -> Tensor:
    """x - sigma * v, computed in fp32 and rounded to x's dtype; sigmas: see the module."""
    return _x0(x, v, _sigma(x, sigma, sigmas)).contiguous()


def _sigma(x: Tensor, sigma: float, sigmas: Tensor | None) -> float | Tensor:
    """What a velocity is multiplied by."""
    if sigmas is None:
        return sigma
    sigmas = sigmas.to(wide(x).dtype)
    return sigmas.unsqueeze(-1) if sigmas.ndim == 2 else sigmas


def _x0(x: Tensor, v: Tensor, sigma: float | Tensor) -> Tensor:
    return (wide(x) - sigma * wide(v)).to(x.dtype)


# -- guidance_combine -------------------------------------------------------------------------


def _check_guidance(call: Call) -> None:
    names = ["cond", "neg", "perturbed", "modality", "x"]
    check_alike("guidance_combine", call, names)
    _check_sigmas("guidance_combine", call)
    if call.sigmas is not None and call.x is None:
        raise ValueError("guidance_combine: sigmas without x; give x beside velocities.")


def _guidance_bucket(call: Call) -> Call:
    """As `_bucket`; whether there is a rescale selects code, how much of it does not."""
    return _bucket(call).replace(rescale=_SOME_RESCALE if call.rescale else 0.0)


_SOME_RESCALE = 0.7


def _like_result(cond: Tensor, *others: Tensor | None) -> Tensor:
    x = others[3] if len(others) > 3 else None
    return _like_x(cond if not isinstance(x, Tensor) else x)


def _like_cond(call: Call) -> TensorSpec:
    return TensorSpec(call.cond.dtype, call.cond.shape)


@op(
    **_RULES,
    bucket=_guidance_bucket,
    variants=[TWO_LAUNCH, TOGETHER, PLAIN],
    fake=_like_result,
    check=_check_guidance,
    implied={"neg": _like_cond, "perturbed": _like_cond, "modality": _like_cond},
    selects=["rescale"],
    varies={"cfg": 3.0, "stg": 1.25, "mod": 2.5, "sigma": 0.725},
)
def guidance_combine(
    cond: Tensor,
    neg: Tensor | None = None,
    perturbed: Tensor | None = None,
    modality: Tensor | None = None,
    x: Tensor | None = None,
    sigmas: Tensor | None = None,
    *,
    cfg: float = 1.0,
    stg: float = 0.0,
    mod: float = 1.0,
    rescale: float = 0.0,
    sigma: float = 1.0,
) -> Tensor:
    """c + (cfg - 1) * (c - neg) + stg * (c - perturbed) + (mod - 1) * (c - modality), then, if
    rescale is not 0, times rescale * std(c) / std(that) + 1 - rescale.

    Four predictions of one x0: given the prompt (c), given the negative one, with perturbed
    attention, with isolated modalities; those that are None cost nothing and add nothing. Standard
    deviations are over the whole tensor, unbiased. Computed in fp32, each operation rounded, the
    result to cond's dtype.

    With x the predictions are velocities, and what is guided are R(x - sigma * v), rounded to x's
    dtype, which is that of the result; sigmas: see the module. Source: LTX-2's MultiModalGuider.
    """
    at = 1.0 if x is None else _sigma(x, sigma, sigmas)

    def predicted(branch: Tensor) -> Tensor:
        return wide(branch if x is None else _x0(x, branch, at))

    c = predicted(cond)
    result = c
    for scale, branch in ((cfg - 1, neg), (stg, perturbed), (mod - 1, modality)):
        if branch is not None:
            result = result + scale * (c - predicted(branch))
    if rescale:
        result = result * (rescale * (c.std() / result.std()) + (1 - rescale))
    return result.to(cond.dtype if x is None else x.dtype).contiguous()
