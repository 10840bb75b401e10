"""Declarations of ops and variants: what is refused, and what is derived."""

import jitd
import pytest
import torch
from jitd.jit.device import stand_in
from jitd.jit.errors import DeclarationError
from jitd.jit.op import OPS
from jitd.jit.sign import Call, TensorSpec
from outside.ops import ELEMENTWISE, scale
from probes.ops import probe_norm
from torch import Tensor

CARD = stand_in("sm_90")
COST = lambda call: jitd.Cost(bytes=1)  # noqa: E731
OUTPUTS = lambda call: {"out": call.x}  # noqa: E731


def declare(reference, **changes):
    arguments = {"variants": [ELEMENTWISE], "outputs": OUTPUTS, "cost": COST, **changes}
    return jitd.op(**arguments)(reference)


def test_the_schema_is_torchs():
    """Names, kinds, defaults and keyword-only arguments are those of the reference."""
    assert scale.op.schema == "(Tensor x, float factor=2.0) -> Tensor"
    assert probe_norm.op.schema == (
        "(Tensor x, Tensor weight, Tensor? bias, int groups, float eps=1e-05, *, "
        'str numerics="exact") -> Tensor'
    )


def refused():
    def no_tensor(factor: float) -> Tensor: ...

    def a_list(x: Tensor, sizes: list[int]) -> Tensor: ...

    def Capital(x: Tensor) -> Tensor: ...

    def outside_scale(x: Tensor) -> Tensor: ...

    def fine(x: Tensor) -> Tensor: ...

    def hidden(x: Tensor, _table: Tensor) -> Tensor: ...

    yield hidden, {}, "named _table; allowed are names that do not begin with an underscore"
    yield no_tensor, {}, "first argument must be a tensor"
    yield a_list, {}, r"sizes: list\[int\]. Allowed are Tensor"
    yield Capital, {}, "allowed are a-z"
    yield outside_scale, {}, r"declared in outside\.ops already"
    yield fine, {"variants": [ELEMENTWISE, ELEMENTWISE]}, "share a name"
    yield fine, {"selects": ["speed"]}, r"selects names \['speed'\]"
    yield fine, {"implied": {"weight": OUTPUTS}}, r"implied names \['weight'\]"
    yield fine, {"below": {"index": lambda call: 4}}, r"below names \['index'\]"


@pytest.mark.parametrize(("reference", "changes", "says"), [*refused()])
def test_nonsense_is_refused(reference, changes, says):
    """What cannot work raises DeclarationError that says why, and declares nothing."""
    before = set(OPS)
    with pytest.raises(DeclarationError, match=says):
        declare(reference, **changes)
    assert set(OPS) == before


def test_arguments_may_be_called_anything_else():
    """No name of an argument hides what the generated guard needs."""

    def probe_names(
        table: Tensor,
        hit: Tensor,
        miss: Tensor,
        type: Tensor,
        grad: float = 1.0,
    ) -> Tensor:
        return grad * (table + hit + miss + type)

    x = torch.ones(2)
    outputs = lambda call: {"out": call.table}  # noqa: E731
    function = declare(probe_names, outputs=outputs)
    for grad in (1.0, 2.0, 1.0):
        assert torch.equal(function(x, x, x, x, grad), 4 * grad * x)


def test_a_string_annotation_does():
    """Modules with `from __future__ import annotations` can declare ops."""

    def probe_strings(x: "Tensor", bias: "Tensor | None" = None, n: "int" = 1) -> "Tensor":
        return x

    op = declare(probe_strings).op
    assert op.schema == "(Tensor x, Tensor? bias=None, int n=1) -> Tensor"


X = Call({"x": TensorSpec("bf16", (4096,)), "factor": 2.0})


def test_configs_are_named_by_variant_and_parameters():
    """Every point of the space is a config with a readable name, in canonical order."""
    kept, dropped = scale.op.configs(X, CARD)
    assert kept[0].name == "elementwise(BLOCK=512, num_warps=4)"
    assert (len(kept), dropped) == (6, [])
    assert scale.op.default(X, CARD).name == "elementwise(BLOCK=1024, num_warps=4)"


def test_a_variant_says_why_it_does_not_apply():
    """A call that a variant cannot compute drops it with its reason; there is no default then."""
    wide = X.replace(x=TensorSpec("fp64", (4096,)))
    assert scale.op.configs(wide, CARD) == ([], [("elementwise", "not contiguous")])
    assert scale.op.default(wide, CARD) is None


def test_a_stored_config_is_found_again_or_not_at_all():
    """A winner's variant and parameters give its config; one that the op lost gives None."""
    op = scale.op
    params = {"num_warps": 4, "BLOCK": 512}
    assert op.config("elementwise", params).name == "elementwise(BLOCK=512, num_warps=4)"
    assert op.config("gone", params) is None
    assert op.config("elementwise", {"BLOCK": 512}) is None
    assert op.config("elementwise", {**params, "STAGES": 2}) is None


def test_an_op_is_a_sentence():
    """An op says its variants."""
    assert repr(scale.op) == "<Op outside_scale: elementwise>"
