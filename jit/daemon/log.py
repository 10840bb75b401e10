"""The daemon's log: a JSON object a line, in a file that is rotated.

It says what was built, for which process, and what went wrong. No environment, no module paths, no
arguments of calls beyond what a signature prints.
"""

import json
import logging
import logging.handlers
import os
import sys
import time
from pathlib import Path
from typing import Any

MAX_BYTES = 1 << 20
FILES = 3


class Lines(logging.Formatter):
    """One line of JSON for each record."""

    def format(self, record: logging.LogRecord) -> str:
        facts: dict[str, Any] = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            facts["traceback"] = self.formatException(record.exc_info)
        return json.dumps(facts, default=str)


class _Private(logging.handlers.RotatingFileHandler):
    def _open(self) -> Any:
        def opener(path: str, flags: int) -> int:
            return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

        return open(self.baseFilename, self.mode, encoding="utf-8", opener=opener)


def begin(path: Path, *, also_stderr: bool) -> None:
    """Log to `path`, and, for systemd and people, to stderr. A file that cannot be written is said
    once on stderr, and done without."""
    logging.raiseExceptions = False  # a full disk costs lines, not a traceback for each
    logger = logging.getLogger("jitd")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    handlers: list[logging.Handler] = []
    try:
        handlers.append(_Private(path, maxBytes=MAX_BYTES, backupCount=FILES - 1))
    except OSError as error:
        print(f"jitd: no log: {error}", file=sys.stderr)
    if also_stderr:
        handlers.append(logging.StreamHandler())
    for handler in handlers:
        handler.setFormatter(Lines())
        logger.addHandler(handler)
