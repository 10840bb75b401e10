"""One process of `tune`, measured from within: `python -m jitd.tools.bench.tune_child SPEC`.

SPEC is JSON, and so is the answer, one line on stdout. `do` says what:
    call      call `signature` of an op once the file `gate` is there; `ready` is made before
    autotune  tune Triton's way: `configs` of the RMSNorm kernel over `rows` of `length`, in `dtype`
"""

# ruff: noqa: PLC0415 - what is not measured is imported before what is
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

GATE_S = 120.0


def main() -> None:
    spec = json.loads(sys.argv[1])
    print(json.dumps({"call": _call, "autotune": _autotune}[spec["do"]](spec)))


def _call(spec: Mapping[str, Any]) -> dict[str, Any]:
    """When (on the clock of all processes) the call had its kernel, and what that took."""
    import torch

    torch.zeros(1, device="cuda")
    from ...jit.check import arguments
    from ...jit.inputs import make_inputs
    from ...jit.runtime import current
    from ...jit.stats import STATS
    from ...models.ops import group_norm

    function = getattr(group_norm, spec["signature"].partition("[")[0])
    op = function.op
    call = op.parse(spec["signature"]).call
    generator = torch.Generator("cuda").manual_seed(0)
    args, named = arguments(op, call, make_inputs(op, call, "cuda", generator, "normal"))
    torch.set_grad_enabled(False)
    torch.cuda.synchronize()
    Path(spec["ready"]).touch()
    _wait_for(Path(spec["gate"]))
    function(*args, **named)
    torch.cuda.synchronize()
    done_at = time.monotonic()
    winner = current().builder_at(0).winner(op, call)
    return {
        "done_at": done_at,
        "stats": STATS.snapshot(),
        "winner": winner.name if winner else None,
    }


def _wait_for(gate: Path) -> None:
    deadline = time.monotonic() + GATE_S
    while not gate.exists():
        if time.monotonic() > deadline:
            sys.exit("nobody opened the gate")
        time.sleep(0.001)


def _autotune(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds of the first call of a kernel under @triton.autotune, and its choice."""
    import torch
    import triton

    from .kernels import affine_silu_kernel, rms_norm_kernel
    from .ops import rms_norm

    rows, n = spec["rows"], spec["length"]
    dtype = getattr(torch, spec["dtype"])
    x = torch.randn(rows, n, device="cuda").to(dtype)
    w = torch.randn(n, device="cuda").to(dtype)
    y = torch.empty_like(x)
    # Triton's own start (its driver, its launcher's C compiler) is not what is measured.
    affine_silu_kernel[(1, 1, 1)](y, x, 1.0, 0.0, 1.0, 0.0, 1e4, 1024, BLOCK=1024)
    torch.cuda.synchronize()
    configs = [
        triton.Config({k: v for k, v in c.items() if k != "num_warps"}, num_warps=c["num_warps"])
        for c in spec["configs"]
    ]
    tuned = triton.autotune(configs=configs, key=["n"])(rms_norm_kernel)
    begin = time.perf_counter()
    tuned[(rows, 1, 1)](y, x, w, n, 1e-6)
    torch.cuda.synchronize()
    seconds = time.perf_counter() - begin
    want = rms_norm.op.reference(x, w, 1e-6)  # type: ignore[attr-defined]  # and no tune by jitd
    torch.testing.assert_close(y, want, rtol=2e-2, atol=2e-2)
    best = tuned.best_config
    return {"seconds": seconds, "params": {**best.kwargs, "num_warps": best.num_warps}}


if __name__ == "__main__":
    main()
