"""Run alone, `python serving_child.py TASK`: serves one signature in mode background, on the GPU.

TASK is JSON: `size` of the tensor, `ready` and `gate`, files to make and to wait for. It calls the
op again and again, checks each answer, and ends when one came from a kernel that was tuned. Prints
one line of JSON: how many calls, the longest wait of the caller's in seconds, counters, the winner.
"""

import json
import sys
import time
from pathlib import Path

import jitd
import torch
from jitd.jit.runtime import current
from jitd.jit.stats import STATS
from outside.ops import scale

LIMIT_S = 300.0


def main(task):
    x = torch.randn(task["size"], device="cuda").bfloat16()
    want = (x.float() * 3.0).bfloat16()
    torch.cuda.synchronize()
    Path(task["ready"]).touch()
    deadline = time.monotonic() + LIMIT_S
    while not Path(task["gate"]).exists():
        time.sleep(0.001)
    calls, longest, pending = 0, 0.0, -1
    while STATS["reference:pending"] != pending:
        pending = STATS["reference:pending"]
        assert time.monotonic() < deadline, jitd.stats()
        begin = time.perf_counter()
        out = scale(x, 3.0)
        longest = max(longest, time.perf_counter() - begin)
        calls += 1
        assert torch.equal(out, want)
        time.sleep(0.01)  # a request now and then
    op = scale.op
    call = op.parse(f"outside_scale[bf16]({task['size']})").call
    winner = current().builder_at(0).winner(op, call)
    print(
        json.dumps(
            {
                "calls": calls,
                "longest": longest,
                "stats": jitd.stats(),
                "winner": winner and winner.name,
            }
        )
    )


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
