"""The tuning process with a scripted GPU: everything of it is real but `jit.tune`.

Run as the child. What a candidate does when it is its turn is said by the environment variable
SCRIPT, `name=hang|crash|lost|raise` by num_warps, and `prepare=...` for what comes first.
"""

import os
import sys
import time
import types
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from fakes import CARD
from jitd import jit
from jitd.autotune.search import CandidateFailed, DeviceLost, Outcome, Timing
from jitd.jit import device, tuner
from jitd.jit.task import DoesNotFit, Found, Trial

SCRIPT = dict(line.split("=") for line in os.environ.get("SCRIPT", "").split(",") if line)
LOG = Path(os.environ["SCRIPT_LOG"])


def answers():
    """The descriptor of the pipe to the parent: the one that is no file of our own."""
    links = {fd: str(Path(f"/proc/self/fd/{fd}").readlink()) for fd in range(3, 64) if _open(fd)}
    return next(fd for fd, link in links.items() if link.startswith("pipe:"))


def _open(fd):
    return os.path.lexists(f"/proc/self/fd/{fd}")


def act(what, name=""):
    with LOG.open("a") as log:
        log.write(f"{os.getpid()} {name} {what}\n")
    match what:
        case "hang":
            time.sleep(3600)
        case "crash":
            os.kill(os.getpid(), 9)
        case "garbage":
            os.write(answers(), b"\xff" * 64)
            time.sleep(3600)
        case "lost":
            raise DeviceLost(name, "verify", "an illegal memory access was encountered")
        case "raise":
            raise RuntimeError("no such thing")
        case "no_fit":
            raise DoesNotFit(2 << 30, 1 << 30)


def tune(task, source, report, card):
    report.step("", "prepare")
    act(SCRIPT.get("prepare", "prepare"))
    measured = []
    for name in source.arrivals():
        config = next(c for c in task.configs if c.name == name)
        report.step(name, "verify")
        act(SCRIPT.get(str(config.params["BLOCK"]), "verify"), name)
        try:
            bodies = source.bodies(name)
            assert all(task.op.name == "outside_scale" and body["cubin"] for body in bodies)
            outcome = Outcome(name, "timed", "", Timing(2.0, 0.0, 40, "graph"))
            measured.append(name)
        except CandidateFailed as failed:
            outcome = Outcome(name, "failed", failed.reason, detail=failed.detail)
        report.trial(Trial(outcome, config, [32], 0))
        report.step("", "wait")
    late = SCRIPT.get("final")
    if late:
        report.step("", "final")
        act(late)
    names = [*measured, *(n for n, o in task.known.items() if o.timing)]
    for name in task.known if "need" in SCRIPT else ():
        assert source.bodies(name)
        act("needed", name)
    check = {"ok": True, "reason": "", "signature": "of the script"}
    return Found(sorted(names)[0], check, 1.0, 3.0, False, 0.0, measured)


def check(op, call, config, artifacts, card, probes, memory_share):
    act(SCRIPT.get(str(config.params["BLOCK"]), "check"), config.name)
    return {"ok": True, "reason": "", "signature": op.sign(call).text}


fake = types.ModuleType("jitd.jit.tune")
fake.tune, fake.check = tune, check
fake.open_context = lambda card: act(SCRIPT.get("hello", "hello"))
sys.modules["jitd.jit.tune"] = jit.tune = fake
device.devices = lambda: [CARD]
tuner.IDLE_S = float(os.environ.get("SCRIPT_IDLE_S", "60"))

if __name__ == "__main__":
    tuner.main()
