"""`python -m jitd.tools.bench`."""

import atexit
import os
import sys

from .cli import main


def _leave(code: int) -> None:
    """End the process, but for what libraries do after Python: once torch's profiler has run,
    torch 2.11 frees something twice there, in libkineto, and a good run would end as aborted.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


if __name__ == "__main__":
    try:
        main()
    except SystemExit as end:
        if "torch.profiler" not in sys.modules or not isinstance(end.code, int | None):
            raise
        _leave(end.code or 0)
