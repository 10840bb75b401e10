"""The identity of the Triton that compiles, without importing it."""

import hashlib
import importlib.metadata
import importlib.util
import os
import re
from functools import lru_cache
from pathlib import Path

# Environment variables by which Triton (3.6 to 3.9) emits other code for the same source.
_FLAGS = (
    "TRITON_DEFAULT_FP_FUSION",
    "TRITON_DISABLE_PTXAS_OPT",
    "DISABLE_PTXAS_OPT",
    "PTXAS_OPTIONS",
    "TRITON_ENABLE_ASAN",
    "TRITON_DISABLE_PERF_PASSES",
    "LLVM_PASS_PLUGIN_PATH",
    "DISABLE_LLVM_OPT",
)

_OF_THE_INSTALLER = re.compile(r"\.\./|/|[^/,]*\.dist-info/|[^,]*\.pyc,")


def toolchain() -> str:
    """A text that changes when compiling the same source may give another binary.

    `3.6.0+<digest>` of what the wheel's RECORD says of its modules and libraries: the hashes of
    libtriton and of every ptxas (1 ms, no import, no hashing of 400 MB), the same wherever and with
    whatever the wheel was installed. For a Triton built in place, size and mtime of libtriton.
    TRITON_PTXAS* overrides and flags that change code follow. `none` without Triton.
    """
    overrides = {k: v for k, v in os.environ.items() if k.startswith("TRITON_PTXAS") or k in _FLAGS}
    parts = [_installed()]
    for name, value in sorted(overrides.items()):
        path = Path(value)
        if path.is_file():
            status = path.stat()
            parts.append(f"{name}={value}:{status.st_size}:{status.st_mtime_ns}")
        else:
            parts.append(f"{name}={value}")
    return " ".join(parts)


@lru_cache(maxsize=1)
def _installed() -> str:
    try:
        wheel = importlib.metadata.distribution("triton")
    except importlib.metadata.PackageNotFoundError:
        return "none"
    record = wheel.read_text("RECORD")
    # An editable or in-place build lists no libtriton in its RECORD.
    if record and "libtriton" in record:
        return f"{wheel.version}+{digest_of(record)}"
    spec = importlib.util.find_spec("triton")
    origin = Path(spec.origin).parent if spec and spec.origin else Path()
    for library in sorted((origin / "_C").glob("libtriton*")):
        status = library.stat()
        return f"{wheel.version}+{status.st_size}.{status.st_mtime_ns}"
    return f"{wheel.version}+unknown"


def digest_of(record: str) -> str:
    """16 hexadecimal digits of the lines of a RECORD that are about modules and libraries.

    What else is in it differs from one environment to the next: the scripts name its path, and of
    compiled modules and dist-info every installer makes its own.
    """
    lines = sorted(line for line in record.splitlines() if not _OF_THE_INSTALLER.match(line))
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=8).hexdigest()
