"""The real worker on a machine with one card, which is a script (`scripted_tuner`).

SCRIPT_FULL: no record can be put, as on a full disk.
"""

import errno
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fakes import CARD
from jitd.cache.errors import CacheWriteError
from jitd.cache.store import Store
from jitd.jit import device
from jitd.jit.child import Child
from jitd.jit.daemon import worker

Child.module = "scripted_tuner"
worker.devices = device.devices = lambda: (CARD,)


def full(self, key, body, **rest):
    """What `Store.put` raises where there is no room."""
    raise CacheWriteError(os.strerror(errno.ENOSPC), errno.ENOSPC)


if __name__ == "__main__":
    if os.environ.get("SCRIPT_FULL"):
        Store.put = full
    worker.main()
