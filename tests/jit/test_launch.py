"""Prepared launches: which address each parameter of a kernel gets. The driver is a fake."""

import ctypes

import pytest
import torch
from jitd.jit import launch
from jitd.jit.declare import Kernel, Launch, Plan, Pointer
from jitd.jit.device import stand_in
from jitd.jit.launch import Executable, Loaded
from jitd.jit.tensors import spec_of

DEVICE = stand_in("sm_90")


class Driver:
    """Notes the arguments of every launch, by name."""

    def __init__(self, names):
        self.names = names
        self.launched = []

    def cuLaunchKernel(self, function, *rest):
        *_, address, _ = rest
        slots = (ctypes.c_void_p * len(self.names)).from_address(address)
        values = [ctypes.c_uint64.from_address(slot).value for slot in slots]
        self.launched.append(dict(zip(self.names, values, strict=True)))
        return (0,)


@pytest.fixture
def driver(monkeypatch):
    made = Driver(["x", "weight", "index", "out"])
    monkeypatch.setattr(launch.devices, "driver", lambda: made)
    for name in ("_cuda_getDevice", "_cuda_getCurrentRawStream"):
        monkeypatch.setattr(torch._C, name, lambda *_: 0, raising=False)
    return made


def executable(driver, tensors, **changes):
    """One launch that takes x, weight and index, as far as they are given, and writes out."""
    named = dict(zip(driver.names, tensors, strict=False))
    given = {name: spec_of(t) for name, t in named.items() if t is not None}
    driver.names = [*given, "out"]
    step = Launch(
        kernel=Kernel("nowhere", "kernel"),
        grid=(1, 1, 1),
        args={name: Pointer(name) for name in driver.names},
    )
    plan = Plan(outputs={"out": given["x"]}, launches=[step], **changes)
    binary = Loaded(0, 7, tuple((name, "u64") for name in driver.names), 0, 0, 0, 0)
    places = [place for place, tensor in enumerate(tensors) if tensor is not None]
    places = places if len(places) < len(tensors) else None
    return Executable(plan, [binary], given, DEVICE, places)


X, WEIGHT, INDEX = torch.zeros(2, 4), torch.zeros(4), torch.zeros(2, dtype=torch.int32)
GIVEN = {
    "all": (X, WEIGHT, INDEX),
    "the last is none": (X, WEIGHT, None),
    "one between is none": (X, None, INDEX),
    "only the first": (X, None, None),
}


@pytest.mark.parametrize("unrolled", [True, False])
@pytest.mark.parametrize("name", GIVEN)
def test_each_parameter_gets_its_own_tensor(driver, name, unrolled):
    """Optional tensors that are None, wherever they stand, shift no address of another, on the
    quick path and on the general one."""
    tensors = GIVEN[name]
    made = executable(driver, tensors)
    function = made.call() if unrolled else made
    assert (function is not made) == unrolled
    out = function(*tensors)
    want = {n: t.data_ptr() for n, t in zip(["x", "weight", "index"], tensors, strict=True)
            if t is not None}  # fmt: skip
    assert driver.launched == [{**want, "out": out.data_ptr()}]


def test_the_right_tensor_is_copied_to_contiguous_memory(driver):
    """What a plan wants contiguous is found by name behind a tensor that is None."""
    index = torch.zeros(2, 2, dtype=torch.int32)[:, 0]
    made = executable(driver, (X, None, index), contiguous=("index",))
    made(X, None, index)
    (launched,) = driver.launched
    assert launched["x"] == X.data_ptr()
    assert launched["index"] not in (index.data_ptr(), X.data_ptr())
