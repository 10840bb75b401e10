"""Cards, with and without a driver."""

import pickle

import jitd
import pytest
from jitd.jit import device
from jitd.jit.errors import ColdKernelError, CompileError, DeclarationError, LaunchError, NotReady


@pytest.mark.parametrize("target", device._STAND_INS)
def test_stand_ins_have_what_plans_ask_for(target):
    """Each known target has a card to plan for, of plausible size, without a GPU's identity."""
    card = device.stand_in(target)
    assert card.target == target and card.uuid == ""
    assert 8 <= card.sm_count <= 200 and 48 << 10 <= card.max_shared_bytes <= 256 << 10
    assert device.capability(target) == int(target.removeprefix("sm_"))
    assert target in str(card)


def test_a_target_of_another_form_is_refused():
    """Only sm_NN is a target."""
    with pytest.raises(ValueError, match="not of the form sm_90"):
        device.capability("gfx942")


def test_without_a_driver_there_is_a_reason(monkeypatch):
    """A machine without a driver has no devices and says why, without an exception."""
    monkeypatch.setattr(device.ctypes.util, "find_library", lambda name: None)
    monkeypatch.setattr(device, "_loads", lambda library: False)
    device.devices.cache_clear()
    assert device.devices() == ()
    assert device.why_no_device() == "no NVIDIA driver (libcuda.so.1) on this machine"
    device.devices.cache_clear()


@pytest.mark.gpu
def test_a_card_is_described():
    """With a GPU the first card has a name, a target, an identity and a driver."""
    card = device.devices()[0]
    assert card.name and card.target.startswith("sm_") and card.uuid and card.driver
    assert card.sm_count > 0 and card.memory_bytes > 1 << 30


@pytest.mark.parametrize(
    "error",
    [
        ColdKernelError("op[bf16](8)", "no winner", "jitctl warmup"),
        CompileError("kernel: no"),
        DeclarationError("op: no"),
        LaunchError("kernel: the CUDA driver answered X."),
        NotReady("cpu", "there is no GPU"),
    ],
)
def test_errors_travel_between_processes(error):
    """Every error is a JitdError, and the same after pickling: workers and pools pass them on."""
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error) and str(again) == str(error)
    assert isinstance(error, jitd.JitdError)
