"""The daemon with a scripted worker, a clock that tests move, and a card that tests describe.

Sockets, locks, processes, queue and store are real. The environment says what is not:
SCRIPT_WORKER  the module of the worker
SCRIPT_CLOCK   a file with the seconds by which the clock is ahead
SCRIPT_CARD    a file with `free_bytes busy pid pid...` of every card; none: nothing can be known
"""

import os
import time
from pathlib import Path

from jitd.jit.daemon import __main__ as command
from jitd.jit.daemon import log, schedule
from jitd.jit.daemon.gpus import Usage


def clock():
    ahead = Path(os.environ["SCRIPT_CLOCK"])
    return time.monotonic() + (float(ahead.read_text()) if ahead.exists() else 0.0)


def look(uuid):
    card = Path(os.environ["SCRIPT_CARD"])
    if not card.exists():
        return None
    free, busy, *pids = card.read_text().split()
    return Usage(int(free), 80 << 30, float(busy), frozenset(map(int, pids)))


if __name__ == "__main__":
    log.MAX_BYTES = int(os.environ.get("SCRIPT_LOG_BYTES", log.MAX_BYTES))
    schedule._SILENCE_S = float(os.environ.get("SCRIPT_SILENCE_S", "60"))
    command.main(
        worker=os.environ.get("SCRIPT_WORKER", "scripted_worker"),
        clock=clock,
        look=look,
        tick_s=0.05,
    )
