"""A machine whose card, compiler and tuner are fakes: `python with_card.py --kill warmup …`.

What happens on it, any number of them before the command:

    --hopeless        no config is ever right
    --restless        the card drifts, so that every winner is noisy
    --driver=VERSION  of the card; 580.1 if none
    --ctrl-c          pressed while the second signature is tuned
    --kill            kill -9 while the second signature is tuned
"""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from fakes import CARD, FakePool, Machine
from jitd.tools.jitctl import bundles, marks, warming, why
from jitd.tools.jitctl.cli import run


def plug_in(
    happens: Sequence[str], root: Path, patch: Callable[[object, str, object], None]
) -> None:
    """Put the fakes where card, compiler and tuner would be, by `patch`."""
    machine, driver = Machine.plug_in(root, patch), "580.1"

    def at_the_second(happening: Callable[[], None]) -> None:
        machine.on_tune = lambda: happening() if len(machine.tuned) == 2 else None

    for word in happens:
        match word.partition("="):
            case "--hopeless", *_:
                machine.hopeless = True
            case "--restless", *_:
                machine.drift = 0.5
            case "--driver", _, driver:
                pass
            case "--ctrl-c", *_:
                at_the_second(_ctrl_c)
            case "--kill", *_:
                at_the_second(lambda: os.kill(os.getpid(), signal.SIGKILL))
            case unknown:
                raise ValueError(unknown)
    card = replace(CARD, driver=driver)
    for module in (warming, marks, bundles, why):
        patch(module, "devices", lambda: (card,))
    patch(warming, "CompilePool", lambda jobs, timeout_s: nullcontext(FakePool()))


def _ctrl_c() -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    command = next(i for i, word in enumerate(sys.argv) if i and not word.startswith("--"))
    plug_in(sys.argv[1:command], Path(os.environ["JITD_CACHE_DIR"]), setattr)
    sys.exit(run(sys.argv[command:]))
