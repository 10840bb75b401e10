"""`python -m tools.check [PART ...]`, from the root of the checkout: what CI runs.

Without a part: lint, format, types, tests. Exit code 0 if every part passed, 1 if one failed, 2 for
wrong usage. All parts are run, so that one look shows everything that is wrong.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from .view import make_view

ROOT = Path(__file__).resolve().parents[2]
USUAL = ("lint", "format", "types", "tests")


def lint(extra: Sequence[str]) -> bool:
    """ruff check"""
    return _run("ruff", "check", *extra, ".")


def form(extra: Sequence[str]) -> bool:
    """ruff format --check"""
    return _run("ruff", "format", "--check", *extra, ".")


def types(extra: Sequence[str]) -> bool:
    """mypy, strict, over cache, autotune, jit and tools"""
    make_view(ROOT)  # mypy does not follow the import hook of an editable install
    return _run("mypy", *extra)


def interpreter(extra: Sequence[str]) -> bool:
    """pytest -m interpreter, in a process whose Triton interprets"""
    # Triton reads the variable when a kernel is defined: one process cannot do both.
    interpreting = {"JITD_INTERPRET": "1", "TRITON_INTERPRET": "1"}
    return _pytest("-m", "interpreter", *extra, environment=interpreting)


def tests(extra: Sequence[str]) -> bool:
    """pytest: the interpreter's tests, then all others (gpu, diffusers: where there is one)"""
    passed = interpreter(extra)
    return _pytest("-m", "not interpreter", *extra) and passed


def compiler(extra: Sequence[str]) -> bool:
    """the tests that a Triton version can break: those of jit/ and models/ that compile"""
    # Of Triton 3.6's interpreter little is left beside today's numpy: what jit/ needs of it.
    passed = interpreter(["tests/jit", *extra])
    folders = ("tests/jit", "tests/models")
    return _pytest("-m", "compiler", *folders, *extra, empty_passes=True) and passed


def wheel(extra: Sequence[str]) -> bool:
    """build the wheel into dist/"""
    for stale in ("build/lib", "build/bdist.linux-x86_64", "dist"):
        shutil.rmtree(ROOT / stale, ignore_errors=True)  # files deleted since would be packed
    return _run("pip", "wheel", "--no-deps", "--wheel-dir", "dist", *extra, ".")


PARTS: Mapping[str, Callable[[Sequence[str]], bool]] = {
    "lint": lint,
    "format": form,
    "types": types,
    "tests": tests,
    "interpreter": interpreter,
    "compiler": compiler,
    "wheel": wheel,
}


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.check",
        description="Run what CI runs. Without a part: " + ", ".join(USUAL) + ".",
        epilog="parts:\n"
        + "\n".join(f"  {name:12} {part.__doc__}" for name, part in PARTS.items())
        + "\n\nexample: python -m tools.check tests -- -k sign",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART")
    given, extra = _split(arguments)
    parts = parser.parse_args(given).parts or USUAL
    if extra and len(parts) > 1:
        parser.error("options after -- go to one part; name it")
    failed = []
    for name in parts:
        began = time.monotonic()
        passed = PARTS[name](extra)
        print(f"{name}: {'passed' if passed else 'FAILED'} in {time.monotonic() - began:.0f} s")
        failed += [] if passed else [name]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments before `--` and those after it."""
    before = list(arguments)
    if "--" not in before:
        return before, []
    at = before.index("--")
    return before[:at], before[at + 1 :]


def _pytest(
    *arguments: str, environment: Mapping[str, str] | None = None, empty_passes: bool = False
) -> bool:
    nothing_ran = 5  # pytest's exit code, and tests/conftest.py's where everything was skipped
    # Most tests wait for processes of their own; more of them at once would wait for the cores.
    several = ("-n", "auto", "--maxprocesses", "4", "--dist", "worksteal")
    # Torch's threads wait for each other by spinning: a third of all time, beside other processes.
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    code = _exit_code(["pytest", *several, *arguments], {**threads, **(environment or {})})
    return code == 0 or (empty_passes and code == nothing_ran)


def _run(*command: str) -> bool:
    return _exit_code(command, {}) == 0


def _exit_code(command: Sequence[str], environment: Mapping[str, str]) -> int:
    print("+", *(f"{k}={v}" for k, v in environment.items()), *command, flush=True)
    # -P: the checkout's folders (`cache`, `models`) must not be importable as they are.
    done = subprocess.run(
        [sys.executable, "-P", "-m", *command],
        cwd=ROOT,
        env={**os.environ, **environment},
        check=False,
    )
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
