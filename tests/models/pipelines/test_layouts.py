"""What lies where on the meta device, as on a real one."""

import pytest
import torch
import torch.nn.functional as F
from jitd.models.pipelines.layouts import as_on_a_card

LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def operands(ndim, device, x_last, weight_last):
    x, weight = (torch.zeros(2, 16, *(6,) * (ndim - 2)), torch.zeros(16, 16, *(3,) * (ndim - 2)))
    x, weight = x.to(device), weight.to(device)
    x = x.to(memory_format=LAST[ndim]) if x_last else x
    return x, weight.to(memory_format=LAST[ndim]) if weight_last else weight


@pytest.mark.parametrize("ndim", [4, 5])
@pytest.mark.parametrize("x_last", [False, True])
@pytest.mark.parametrize("weight_last", [False, True])
def test_convolutions_lie_as_on_the_cpu(ndim, x_last, weight_last):
    """Channels-last of input or weight goes on, called as a function or as torch's own."""
    conv = F.conv2d if ndim == 4 else F.conv3d
    want = conv(*operands(ndim, "cpu", x_last, weight_last), padding=1).stride()
    with as_on_a_card():
        x, weight = operands(ndim, "meta", x_last, weight_last)
        assert conv(x, weight, padding=1).stride() == want
        assert conv(input=x, weight=weight, bias=None, padding=1).stride() == want


def test_autocast_is_none_on_meta():
    """A model that switches autocast off for its own device runs on the meta device, too."""
    with as_on_a_card(), torch.autocast(device_type="meta", enabled=False):
        assert torch.zeros(1, device="meta").is_meta
    with as_on_a_card(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.zeros(2, 2).mm(torch.zeros(2, 2)).dtype == torch.bfloat16
