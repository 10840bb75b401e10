"""Skips, with the reason, what this interpreter of Triton cannot run."""

import os
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@cache
def _why_no_loops() -> str | None:
    """Why a kernel with a loop over run-time bounds cannot be interpreted here, or None."""
    import torch  # noqa: PLC0415
    import triton  # noqa: PLC0415

    from .probes import count_kernel  # noqa: PLC0415

    steps = torch.zeros(4, dtype=torch.int32)
    try:
        count_kernel[(1,)](steps, 0, 12, BLOCK=4)
    except Exception as error:  # noqa: BLE001  (each version fails in its own way)
        return f"Triton {triton.__version__} cannot interpret a loop beside this numpy: {error}"
    return None if steps.eq(3).all() else "Triton's interpreter miscounts a loop"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("JITD_INTERPRET") != "1":
        return
    for item in items:
        if HERE in item.path.parents and item.get_closest_marker("interpreter"):
            reason = _why_no_loops()
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))
