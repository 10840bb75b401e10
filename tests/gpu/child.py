"""Run alone, `python child.py TASK`: calls ops on the GPU and says what that took.

TASK is JSON. `signatures` are called one after the other, each with random inputs; `lengths` are
numbers of frames for which a small upsampler is run, with and without jitd; `ready` and `gate`
name files: one to make, one to wait for before the first call. In the folder `tuning` a file with
the name of the process's id is made when it begins to tune. Prints one line of JSON.
"""

# ruff: noqa: PLC0415 - what is imported when is what some tests ask about

import json
import logging
import os
import sys
import time
from pathlib import Path

import torch

GATE_S = 90.0
UPSAMPLER = {"mid_channels": 32, "num_blocks_per_stage": 1}


class Kept(logging.Handler):
    """Keeps what was logged, and tells when a tune begins, whose locks are held by then."""

    def __init__(self, tuning=None):
        super().__init__()
        self.lines = []
        self.tuning = tuning

    def emit(self, record):
        text = record.getMessage()
        self.lines.append(f"{record.levelname} {record.name}: {text}")
        if self.tuning and text.startswith("tuning "):
            Path(self.tuning, str(os.getpid())).touch()


def call(function, text):
    """Call an op as its signature says; whether it is close to its reference, and its config."""
    from jitd.jit.inputs import make_inputs
    from jitd.jit.runtime import current
    from jitd.jit.sign import TensorSpec

    op = function.op
    asked = op.parse(text).call
    tensors = iter(make_inputs(op, asked, "cuda", torch.Generator("cuda").manual_seed(0), "normal"))
    args, named = [], {}
    for argument in op.arguments:
        value = asked[argument.name]
        value = next(tensors) if isinstance(value, TensorSpec) else value
        if argument.keyword_only:
            named[argument.name] = value
        else:
            args.append(value)
    out, want = function(*args, **named), op.reference(*args, **named)
    torch.testing.assert_close(out, want, rtol=2e-2, atol=2e-2)
    assert out.stride() == want.stride()
    winner = current().builder_at(0).winner(op, asked)
    return winner.name if winner else None


def forward(frames):
    """Run the upsampler; its result is a function of its arguments."""
    from jitd.models.ltx2.presets import Size
    from jitd.models.ltx2.workload import run_upsampler

    torch.manual_seed(0)
    return run_upsampler(Size(512, 768, frames), dtype=torch.bfloat16, device="cuda", **UPSAMPLER)


def main(task):
    kept = Kept(task.get("tuning"))
    logging.getLogger("jitd").addHandler(kept)
    logging.getLogger("jitd").setLevel(logging.INFO)
    torch.zeros(1, device="cuda")

    import jitd
    from jitd.models.ops.group_norm import group_norm_add_silu, group_norm_silu
    from outside.ops import scale

    functions = {f.op.name: f for f in (group_norm_silu, group_norm_add_silu, scale)}
    if "gate" in task:
        Path(task["ready"]).touch()
        deadline = time.monotonic() + GATE_S
        while not Path(task["gate"]).exists():
            if time.monotonic() > deadline:
                sys.exit("nobody opened the gate")
            time.sleep(0.001)
    winners = {text: call(functions[text.partition("[")[0]], text) for text in task["signatures"]}
    outs = {frames: forward(frames) for frames in task.get("lengths", ())}
    torch.cuda.synchronize()
    found = {
        "stats": jitd.stats(),
        "winners": winners,
        "triton": "triton" in sys.modules,
        "log": kept.lines,
    }
    jitd.configure(mode="off")
    for frames, out in outs.items():
        torch.testing.assert_close(out, forward(frames), rtol=2e-2, atol=7e-2)
    print(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
