"""Processes that are measured from within: each is told what to do in JSON and answers in JSON."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class ChildFailed(Exception):
    """A process that was to be measured ended with an error; the message is its last line."""


def started(
    module: str, spec: Mapping[str, Any], variables: Mapping[str, str]
) -> "subprocess.Popen[str]":
    """`python -m module SPEC`, with `variables` beside the environment's own."""
    return subprocess.Popen(
        [sys.executable, "-m", module, json.dumps(spec)],
        env=environment_with(variables),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def environment_with(variables: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with `variables`, for one that imports what this one can."""
    path = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
    return {**os.environ, "PYTHONPATH": path, **variables}


def answer(child: "subprocess.Popen[str]", timeout_s: float) -> dict[str, Any]:
    """The last line that a process prints, once it has ended. Raises ChildFailed.

    It is gone afterwards, whatever happened.
    """
    try:
        out, said = child.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        raise ChildFailed(f"a process took more than {timeout_s:g} s") from error
    finally:
        end(child)
    lines = out.splitlines()
    if child.returncode or not lines:
        words = said.strip().splitlines() or [f"exit code {child.returncode}, no word"]
        raise ChildFailed(words[-1])
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def end(child: "subprocess.Popen[str]") -> None:
    """Kill it if it runs, and let go of its pipes."""
    child.kill()
    child.wait()
    for pipe in (child.stdout, child.stderr):
        if pipe is not None:
            pipe.close()
