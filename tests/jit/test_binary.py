"""The binary key: one argument at a time, another class, another key."""

from dataclasses import replace

import jitd
import pytest
from jitd.jit.binary import binary_of
from jitd.jit.errors import DeclarationError
from jitd.jit.sign import Passed, TensorSpec

KERNEL = jitd.Kernel("probes.kernels", "classes_kernel")
TENSORS = {"x": TensorSpec("bf16", (4096,)), "y": TensorSpec("bf16", (4096,))}
ARGS = {
    "p": jitd.Pointer("y"), "q": jitd.Pointer("x"), "free": 33, "count": 4096, "step": 3,
    "wide": 5, "flag": True, "factor": 0.5, "double": 0.5, "BLOCK": 256,
}  # fmt: skip
LAUNCH = jitd.Launch(KERNEL, (16, 1, 1), ARGS)


def key(launch=LAUNCH, tensors=TENSORS, target="sm_90", toolchain="3.9.0+abc", **args):
    launch = replace(launch, args={**launch.args, **args})
    return binary_of(launch, tensors, target, toolchain).key


PERTURBED = {
    "free is 1": {"free": 1},
    "free is a multiple of 16": {"free": 32},
    "free is wide": {"free": (1 << 33) + 1},
    "free is wide and a multiple of 16": {"free": 1 << 33},
    "free is unsigned": {"free": (1 << 63) + 1},
    "free is a bool": {"free": True},
    "free is a float": {"free": 33.0},
    "free is None": {"free": None},
    "count is wide": {"count": 1 << 33},
    "step is 1": {"step": 1},
    "wide is 1": {"wide": 1},
    "wide is a multiple of 16": {"wide": 48},
    "another block": {"BLOCK": 512},
    "a block that is true": {"BLOCK": True},
    "warps": {"launch": replace(LAUNCH, num_warps=8)},
    "stages": {"launch": replace(LAUNCH, num_stages=2)},
    "fusion": {"launch": replace(LAUNCH, fp_fusion=True)},
    "target": {"target": "sm_100"},
    "toolchain": {"toolchain": "3.6.0+abc"},
    "dtype in": {"tensors": {**TENSORS, "x": TensorSpec("fp16", (4096,))}},
    "dtype out": {"tensors": {**TENSORS, "y": TensorSpec("fp32", (4096,))}},
    "unaligned in": {"tensors": {**TENSORS, "x": TensorSpec("bf16", (4096,), aligned=False)}},
    "unaligned out": {"tensors": {**TENSORS, "y": TensorSpec("bf16", (4096,), aligned=False)}},
    "another kernel": {"launch": jitd.Launch(
        jitd.Kernel("probes.kernels", "optional_kernel"), (1, 1, 1),
        {"out_ptr": jitd.Pointer("y"), "bias_ptr": None, "BLOCK": 256},
    )},
}  # fmt: skip


def test_every_perturbation_has_a_key_of_its_own():
    """Each argument, option, target and toolchain, changed alone, gives a key that no other has."""
    keys = {"as it is": key()}
    for name, change in PERTURBED.items():
        arguments = dict(change)
        if name == "another kernel":
            keys[name] = binary_of(arguments["launch"], TENSORS, "sm_90", "3.9.0+abc").key
        else:
            keys[name] = key(**arguments)
    assert len({one.digest for one in keys.values()}) == len(keys)


@pytest.mark.parametrize("count", [0, 1, 16, 17, 4096, 4097, (1 << 31) - 1])
def test_counts_that_are_not_specialised_share_a_key(count):
    """Within a bucket a new length compiles nothing: 1, 16, 17, 4096 and 4097 are one binary."""
    assert key(count=count) == key()


@pytest.mark.parametrize(
    "change",
    [
        {"free": 35},
        {"step": 48},  # not specialised on alignment
        {"factor": 2.0},
        {"factor": Passed("factor", 2.0)},
        {"double": 2.0},
        {"double": 2},  # annotated as a float: any number is one
        {"double": True},
        {"double": Passed("sigma", 0.5)},
        {"flag": False},
        {"launch": replace(LAUNCH, grid=(7, 2, 1))},
        {"launch": replace(LAUNCH, cooperative=True, dependent=True)},
        {"tensors": {name: TensorSpec("bf16", (64, 64)) for name in TENSORS}},
    ],
)
def test_values_shapes_and_grids_are_no_part_of_it(change):
    """What decides no bytes of the binary (values, shapes, the grid) is not in its key."""
    assert key(**change) == key()


def test_the_request_says_all_that_the_key_does():
    """What a worker is asked follows from the binary, in plain data."""
    binary = binary_of(LAUNCH, TENSORS, "sm_90", "3.9.0")
    request = binary.request()
    assert request["kernel"] == ["probes.kernels", "classes_kernel"]
    assert request["target"] == 90
    assert request["classes"]["q"] == ["pointer", "bf16", True]
    assert request["options"] == {"enable_fp_fusion": False, "num_stages": 3, "num_warps": 4}
    assert str(binary) == "classes_kernel for sm_90"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"nonsense": 1}, "unknown .'nonsense'."),
        ({"free": (1, 2)}, "free is a tuple"),
        ({"free": "text"}, "str is no runtime argument"),
        ({"BLOCK": jitd.Pointer("x")}, "constexpr, but is given a pointer"),
        ({"BLOCK": Passed("sigma", 0.5)}, "constexpr, but is given a float that varies"),
    ],
)
def test_what_cannot_be_passed_is_refused(args, says):
    """What the kernel lacks or jitd cannot pass raises DeclarationError that says which."""
    with pytest.raises(DeclarationError, match=says):
        key(**args)


def test_a_missing_argument_is_refused():
    """A launch has to give every parameter."""
    launch = replace(LAUNCH, args={"p": jitd.Pointer("y")})
    with pytest.raises(DeclarationError, match=r"missing \['BLOCK'"):
        binary_of(launch, TENSORS, "sm_90", "")
