"""Run alone: what Triton makes of real arguments, and of the mocks that stand for their classes.

Prints one JSON list of [name, Triton's specialisation of the real one, of the mock, jitd's class].
"""

import json

import torch
from jitd.jit.binary import argument_class
from jitd.jit.declare import Kernel, Pointer
from jitd.jit.sign import TensorSpec
from jitd.jit.tensors import spec_of
from jitd.jit.worker import _mock, _StubDriver
from probes.kernels import classes_kernel
from triton.runtime import driver

STORAGE = torch.empty(256, dtype=torch.uint8)
STORAGE = STORAGE[-STORAGE.data_ptr() % 64 :]
INTEGERS = [0, 1, -1, 2, 15, 16, 17, 48, -16, -17, 4096, 4097, 2**31 - 1, 2**31 - 16]
INTEGERS += [2**31, 2**31 + 1, -(2**31), -(2**31) - 1, -(2**31) - 16, 2**33, 2**63 - 1]
UNSIGNED = [2**63, 2**63 + 1, 2**64 - 16]
DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.int8, torch.int32, torch.int64]
DTYPES += [torch.bool, torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2]


def cases():
    for name in ("free", "count", "step", "wide"):
        for value in INTEGERS if name == "wide" else INTEGERS + UNSIGNED:
            yield name, value
    for name in ("flag", "free"):
        yield from ((name, value) for value in (True, False))
    for name in ("factor", "double"):
        yield from ((name, value) for value in (0.0, 1.0, 16.0, -2.5, 1e300))
    yield from (("double", value) for value in (0, 1, 16, -3, True, False))
    yield from ((name, None) for name in ("q", "free", "flag"))
    for dtype in DTYPES:
        for shift in (0, 1, 8, 16):
            if shift % dtype.itemsize == 0:
                flat = STORAGE[shift : shift + 64]
                yield "q", flat.view(dtype)
    yield from (("BLOCK", value) for value in (128, 256))


def main():
    driver.set_active(_StubDriver(90))
    binder = classes_kernel.device_caches[90][-1]
    source = Kernel("probes.kernels", "classes_kernel").source
    parameters = {p.name: p for p in source.parameters}
    usual = {
        "free": 33,
        "count": 7,
        "step": 3,
        "wide": 5,
        "flag": True,
        "factor": 0.5,
        "double": 0.5,
    }
    usual |= {"p": STORAGE[:64], "q": STORAGE[:64], "BLOCK": 64}
    place = list(parameters)
    found = []

    def specialised(name, value):
        bound = binder(**{**{n: usual[n] for n in place}, name: value}, num_warps=4, debug=False)
        return repr(bound[1][place.index(name)])

    for name, value in cases():
        tensors: dict[str, TensorSpec] = {}
        argument = value
        if isinstance(value, torch.Tensor):
            tensors, argument = {"t": spec_of(value)}, Pointer("t")
        kind = argument_class(parameters[name], argument, tensors)
        found.append([name, specialised(name, value), specialised(name, _mock(list(kind))), kind])
    print(json.dumps(found))


main()
