"""What a prepared launch is given, with a driver that only notes it: no GPU is needed."""

import ctypes
import struct
from types import SimpleNamespace

import pytest
import torch
from jitd.jit import device as devices
from jitd.jit import launch as launching
from jitd.jit.declare import Kernel, Launch, Plan, Pointer, Workspace
from jitd.jit.device import stand_in
from jitd.jit.launch import Executable, Loaded
from jitd.jit.sign import Passed, TensorSpec

X, Y = torch.arange(4.0), torch.arange(4.0)
SPEC = TensorSpec("fp32", (4,))
KERNEL = Kernel("outside.kernels", "fade_kernel")
PARAMS = (("out_ptr", "u64"), ("early", "f64"), ("x_ptr", "u64"), ("late", "f32"), ("n", "u32"))
ARGS = {
    "out_ptr": Pointer("out"), "x_ptr": Pointer("x"), "n": 9,
    "early": Passed("early", -0.5), "late": Passed("late", 2.0),
}  # fmt: skip
BINARY = Loaded(0, 77, PARAMS, 2, 0, 32, 0)


class Driver:
    """Notes the parameters of each launch, slot by slot, as the card would read them."""

    def __init__(self):
        self.launched = []

    def cuLaunchKernel(self, function, *rest):
        *_, stream, address, _ = rest
        pointers = ctypes.cast(address, ctypes.POINTER(ctypes.c_void_p))
        slots = [ctypes.string_at(pointers[n], 8) for n in range(len(PARAMS))]
        self.launched.append((function, stream, slots))
        return (0,)


@pytest.fixture
def driver(monkeypatch):
    """The driver, with a card that is current, and outputs on the CPU."""
    driver = Driver()
    monkeypatch.setattr(devices, "driver", lambda: driver)
    cuda = {"_cuda_getDevice": lambda: 0, "_cuda_getCurrentRawStream": lambda index: 5,
            "_cuda_isCurrentStreamCapturing": lambda: False}  # fmt: skip
    for name, function in cuda.items():
        monkeypatch.setattr(torch._C, name, function, raising=False)
    on_cpu = SimpleNamespace(device=lambda *_: "cpu", empty=torch.empty, Tensor=torch.Tensor)
    names = {**vars(torch), **vars(on_cpu)}
    monkeypatch.setattr(launching, "torch", SimpleNamespace(**names))
    return driver


def executable(*, launches=1, inputs=None, places=None, varying=("late", "early"), **plan):
    launch = Launch(KERNEL, (1, 1, 1), ARGS)
    return Executable(
        Plan(outputs={"out": SPEC}, launches=[launch] * launches, **plan), [BINARY] * launches,
        inputs or {"x": SPEC}, stand_in("sm_90"), places, varying,
    ).call()  # fmt: skip


def seen(slots, x, out, late, early):
    assert slots[0] == struct.pack("<Q", out.data_ptr())
    assert slots[1] == struct.pack("<d", early)
    assert slots[2] == struct.pack("<Q", x.data_ptr())
    assert slots[3] == struct.pack("<f", late) + bytes(4)
    assert slots[4][:4] == struct.pack("<I", 9)


@pytest.mark.parametrize(
    "how", [{}, {"launches": 2}, {"workspaces": {"ws": Workspace("fp32", 3)}},
            {"inputs": {"w": SPEC, "x": SPEC}, "places": [0, 2]}],
    ids=["one launch", "two launches", "a workspace", "a gap"],
)  # fmt: skip
def test_each_call_passes_its_own(driver, how):
    """By the quickest way and by the general one, with arguments that are None between tensors: the
    values of this call, each in the bits of its type."""
    call = executable(**how)
    tensors = (Y, None, X) if "places" in how else (X,)
    for late, early in ((0.5, 0.25), (1.0, 1e-12), (-3.0, 1 / 3)):
        driver.launched.clear()
        out = call(*tensors, late, early)
        assert len(driver.launched) == how.get("launches", 1)
        for function, stream, slots in driver.launched:
            assert (function, stream) == (77, 5)
            seen(slots, X, out, late, early)


def test_without_scalars_there_are_examples(driver):
    """Checks and timing call with tensors alone."""
    for launches in (1, 2):
        out = executable(launches=launches, varying=())(X)
        seen(driver.launched[-1][2], X, out, 2.0, -0.5)
