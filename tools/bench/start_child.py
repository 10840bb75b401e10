"""One fresh process, measured from within: `python -m jitd.tools.bench.start_child SPEC`.

SPEC is JSON. The answer is one line of JSON on stdout. Torch first, then jitd, then Triton, each
from the moment when the one before it had a kernel done, so that only what it adds is counted.
"""

# ruff: noqa: PLC0415 - when something is imported is what this file measures
import json
import os
import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any


def main() -> None:
    """SPEC: `first` and `further` (shapes of group_norm_silu), `groups`, `dtypes` (of the
    elementwise op), `path` (PATH for Triton's part), `measure` (False: only fill the caches).
    """
    spec = json.loads(sys.argv[1])
    begin = perf_counter()
    import torch

    torch.ones(1024, device="cuda").add_(1.0)
    torch.cuda.synchronize()
    answer: dict[str, Any] = {"torch_ms": _ms_since(begin)}
    torch.set_grad_enabled(False)
    norm_inputs = [_norm_inputs(torch, shape) for shape in [spec["first"], *spec["further"]]]
    small = [torch.randn(4096, device="cuda").to(getattr(torch, n)) for n in spec["dtypes"]]
    torch.cuda.synchronize()

    _jitd(torch, norm_inputs, spec["groups"], small, answer)
    if spec["measure"]:
        _refuse_if_cold()
    os.environ["PATH"] = spec["path"]  # on 3.6 Triton looks for a C compiler
    try:
        _triton(torch, small[0], answer)
    except Exception as error:  # noqa: BLE001  (jitd's figures are worth having without)
        answer["triton_problem"] = f"{type(error).__name__}: {error}"[:500]
    print(json.dumps(answer))


def _jitd(
    torch: Any, norm_inputs: list[Any], groups: int, small: list[Any], answer: dict[str, Any]
) -> None:
    begin = perf_counter()
    from ...models.ops.group_norm import group_norm_silu

    answer["jitd_import_ms"] = _ms_since(begin)
    group_norm_silu(*norm_inputs[0], groups)
    torch.cuda.synchronize()
    answer["jitd_first_ms"] = _ms_since(begin)
    answer["jitd_norm_ms"] = [
        _first_call(torch, lambda given=given: group_norm_silu(*given, groups))  # type: ignore[misc]
        for given in norm_inputs[1:]
    ]
    from .ops import affine_silu

    answer["jitd_elementwise_ms"] = [
        _first_call(torch, lambda x=x: affine_silu(x))  # type: ignore[misc]
        for x in small
    ]


def _triton(torch: Any, x: Any, answer: dict[str, Any]) -> None:
    """The same kernel of one launch, as anybody would launch it, from Triton's own disk cache."""
    begin = perf_counter()
    from .kernels import affine_silu_kernel

    answer["triton_import_ms"] = _ms_since(begin)
    n = x.numel()

    def launch(x: Any, y: Any, block: int) -> None:
        grid = ((n + block - 1) // block, 1, 1)
        affine_silu_kernel[grid](y, x, 1.0, 0.0, 1.0, 0.0, 1e4, n, BLOCK=block)

    launch(x, torch.empty_like(x), 1024)
    torch.cuda.synchronize()
    answer["triton_first_ms"] = _ms_since(begin)
    others = [(x, 512), (x.to(torch.float16), 1024), (x.to(torch.float32), 1024)]
    pairs = [(x, torch.empty_like(x), block) for x, block in others]
    torch.cuda.synchronize()
    answer["triton_further_ms"] = [
        _first_call(torch, lambda given=given: launch(*given))  # type: ignore[misc]
        for given in pairs
    ]


def _first_call(torch: Any, call: Callable[[], object]) -> float:
    begin = perf_counter()
    call()
    torch.cuda.synchronize()
    return _ms_since(begin)


def _refuse_if_cold() -> None:
    """Exit with one line unless everything came from the cache, without Triton and a PATH."""
    from ...jit.stats import STATS

    counts = STATS.snapshot()
    built = {n: c for n, c in counts.items() if n in ("compiles", "tunes", "checks")}
    answered = {n: c for n, c in counts.items() if n.startswith("reference:")}
    if built or answered:
        sys.exit(f"the cache was not warm: {built | answered}")
    if loaded := sorted(name for name in sys.modules if name.partition(".")[0] == "triton"):
        sys.exit(f"Triton was imported: {', '.join(loaded[:5])}")
    if os.environ.get("PATH"):
        sys.exit("PATH was not empty")


def _norm_inputs(torch: Any, shape: list[int]) -> list[Any]:
    shapes = [shape, shape[1:2], shape[1:2]]
    return [torch.randn(one, device="cuda").bfloat16() for one in shapes]


def _ms_since(begin: float) -> float:
    return 1e3 * (perf_counter() - begin)


if __name__ == "__main__":
    main()
