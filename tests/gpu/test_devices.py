"""More than one card: the inputs decide where an op runs, and a winner serves both."""

import jitd
import pytest
import torch
from jitd.jit import device
from outside.ops import scale

from .cases import ADD, FUNCTIONS, arguments

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("two_cards")]


def test_the_inputs_decide(cold):
    """With card 0 current, an op on tensors of card 1 runs there and leaves card 0 current."""
    args = arguments(ADD, (1, 64, 4, 8, 12), 32, dtype=torch.bfloat16, device="cuda:1")
    torch.cuda.set_device(0)
    jitd.configure(mode="replay")
    out = FUNCTIONS[ADD.name](*args)
    assert out.device == torch.device("cuda", 1)
    assert torch.cuda.current_device() == 0
    torch.testing.assert_close(out, ADD.reference(*args), rtol=2e-2, atol=2e-2)
    assert not [name for name in jitd.stats() if name.startswith("reference:")]


def test_one_tune_serves_cards_of_one_model(cold):
    """Two cards of the same model share the winner, its binary and its check."""
    one, two = device.devices()[:2]
    if (one.name, one.sm_count, one.memory_bytes) != (two.name, two.sm_count, two.memory_bytes):
        pytest.skip("needs two cards of one model")
    for index in (0, 1, 0):
        x = torch.randn(5000, device=f"cuda:{index}")
        assert torch.equal(scale(x), 2 * x)
    stats = jitd.stats()
    assert stats["tunes"] == 1
    assert stats.get("checks", 0) == 0
    assert stats["loads"] == 2
