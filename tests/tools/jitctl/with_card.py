"""`jitctl` on a machine whose card, compiler and tuner are fakes: `python with_card.py list`.

The first argument may be `--hopeless` (no config is ever right) or `--ctrl-c` (pressed while the
second signature is tuned).
"""

import os
import sys
from contextlib import nullcontext
from pathlib import Path

from fakes import CARD, FakePool, Machine
from jitd.tools.jitctl import warming
from jitd.tools.jitctl.cli import run


def _interrupt_the_second() -> None:
    if len(machine.tuned) == 2:
        raise KeyboardInterrupt


machine = Machine.plug_in(Path(os.environ["JITD_CACHE_DIR"]), setattr)
warming.devices = lambda: (CARD,)
warming.CompilePool = lambda jobs, timeout_s: nullcontext(FakePool())
arguments = sys.argv[1:]
if arguments[0] == "--hopeless":
    machine.hopeless = bool(arguments.pop(0))
elif arguments[0] == "--ctrl-c":
    arguments.pop(0)
    machine.on_tune = _interrupt_the_second
sys.exit(run(arguments))
