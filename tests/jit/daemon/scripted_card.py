"""The real worker on a machine with one card, which is a script (`scripted_tuner`)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fakes import CARD
from jitd.jit import device
from jitd.jit.child import Child
from jitd.jit.daemon import worker

Child.module = "scripted_tuner"
worker.devices = device.devices = lambda: (CARD,)

if __name__ == "__main__":
    worker.main()
