"""What a compiled binary does, read by the cuobjdump that comes with Triton."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

WAIT_S = 240.0


def sass(cubin, folder):
    """The disassembly of a cubin."""
    return _read("-sass", cubin, folder)


def usage(cubin, folder):
    """(registers, bytes of stack: what is spilled) of a thread."""
    found = re.search(r"REG:(\d+) STACK:(\d+)", _read("-res-usage", cubin, folder))
    return int(found[1]), int(found[2])


def widths(text):
    """(bits of each load from global memory, bits of each store to it)."""
    found: dict[str, list[int]] = {"LDG": [], "STG": []}
    for name, flags in re.findall(r"\b(LDG|STG)((?:\.\w+)+)", text):
        wide = {"64": 64, "128": 128}
        found[name].append(next((wide[f] for f in flags.split(".") if f in wide), 32))
    return found["LDG"], found["STG"]


def _read(option, cubin, folder):
    import triton  # noqa: PLC0415

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    found = str(tool) if tool.is_file() else shutil.which("cuobjdump")
    if found is None:
        pytest.skip("no cuobjdump: neither in this Triton's wheel nor on PATH")
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    command = [found, option, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr
