"""One thread of torch's: for models this small more of them only wait for each other."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _own_attention_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """`set_attention_backend` on one model makes that the backend of the process: not for longer
    than its test.
    """
    try:
        from diffusers.models.attention_dispatch import (  # noqa: PLC0415
            _AttentionBackendRegistry as backends,
        )
    except ImportError:  # the tests here say so themselves
        return
    monkeypatch.setattr(backends, "_active_backend", backends._active_backend)
