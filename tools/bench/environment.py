"""What a figure depends on besides the code: card, driver, versions, date."""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Any

from ...jit.declare import Device
from ...jit.device import devices, why_no_device

_PACKAGES = ("torch", "triton", "cuda-bindings", "cuda-core")


class NoGpu(Exception):
    """There is nothing to measure on. The message is one line that says why."""


class NoDiffusers(Exception):
    """There is nothing to patch. The message is one line that says why."""


def gpu() -> Device:
    """The card that is measured: the first one that CUDA shows. Raises NoGpu."""
    found = devices()
    if not found:
        raise NoGpu(f"a benchmark needs an NVIDIA GPU: {why_no_device() or 'none was found'}.")
    return found[0]


def need_torch_with_cuda() -> None:
    """Raises NoGpu if the installed torch cannot use the card."""
    import torch  # noqa: PLC0415  (a second; `--help` does without)

    if not torch.cuda.is_available():
        raise NoGpu(f"a benchmark needs torch with CUDA; torch {torch.__version__} sees no GPU.")


def need_diffusers() -> str:
    """The version of diffusers. Raises NoDiffusers."""
    try:
        return version("diffusers")
    except PackageNotFoundError:
        raise NoDiffusers(
            "bench patch measures models of diffusers, which is not installed: "
            "pip install 'jitd[diffusers]'."
        ) from None


def environment(device: Device) -> dict[str, Any]:
    """The facts to print above a table and to store beside its figures."""
    packages = {name.replace("-", "_"): _version(name) for name in _PACKAGES}
    torch = sys.modules.get("torch")
    if torch is not None:  # names the CUDA it was built for, which the package's version may not
        packages["torch"] = str(torch.__version__)
    return {
        "gpu": device.name,
        "target": device.target,
        "sm_count": device.sm_count,
        "memory_bytes": device.memory_bytes,
        "driver": device.driver,
        **packages,
        "python": python_version(),
        "jitd": getattr(sys.modules[__name__.partition(".")[0]], "__version__", "unknown"),
        "cpus": os.cpu_count(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@contextmanager
def variables(**values: str) -> Iterator[None]:
    """Environment variables while open, for processes that are started then."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def print_environment(facts: Mapping[str, Any]) -> None:
    """One line of the facts that people compare; the JSON has all of them."""
    text = (
        "{gpu}, {sm_count} SMs, driver {driver}, torch {torch}, Triton {triton}, "
        "cuda-bindings {cuda_bindings}, Python {python}, jitd {jitd}, {date}"
    )
    print(text.format_map(facts), flush=True)


def print_versions(facts: Mapping[str, Any]) -> None:
    """The line for what is measured without a GPU."""
    text = (
        "no GPU, for {target}; {cpus} CPUs, Triton {triton}, Python {python}, jitd {jitd}, {date}"
    )
    print(text.format_map(facts), flush=True)


def write_json(path: Path | None, report: Mapping[str, Any]) -> None:
    """Write the report so far; a reader never finds half of one."""
    if path is None:
        return
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
