"""What comes in a bundle is held to the shape that its readers rely on."""

import copy
from hashlib import blake2b

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jitd.cache.keys import Key
from jitd.cache.records import decode, encode
from jitd.jit.bodies import flaw

CUBIN = b"code"
CUBIN_DIGEST = blake2b(CUBIN, digest_size=20).hexdigest()
TRIAL = {
    "config": "plain(BLOCK=64)", "variant": "plain", "params": {"BLOCK": 64}, "status": "timed",
    "reason": "", "detail": "", "error": 0.1, "registers": [40], "spills": 0, "digest": "d",
    "timing": {"us": 2.0, "spread": 0.1, "reps": 40, "how": "graph"},
}  # fmt: skip
BODIES = {
    "artifact": {
        "cubin": CUBIN, "cubin_digest": CUBIN_DIGEST, "symbol": "k", "shared": 0,
        "num_warps": 4, "params": [["x", "u64"]], "scratch_pointers": 2, "candidate": False,
    },
    "check": {"ok": True, "reason": "", "signature": "s"},
    "negative": {"reason": "it is broken"},
    "winner": {
        "variant": "plain", "params": {"BLOCK": 64}, "config": "plain(BLOCK=64)", "digest": "d",
        "signature": "s", "tuned_at": "s", "us": 2.0, "how": "graph", "eager_us": 3.0,
        "floor_us": None, "device": "NVIDIA Test", "target": "sm_90", "driver": None,
        "check": {"ok": True, "max_abs_error": 0.1}, "outcomes": [TRIAL], "dropped": {"no": ["a"]},
        "stopped_early": False, "drift": 0.0, "noisy": False,
    },
}  # fmt: skip
META = {"target": "sm_90", "shape": [1, 2], "noisy": False, "us": 2.0}


def found(kind, body, meta=META):
    key = Key.of(kind, "silu", n=1)
    return flaw(decode(encode(key, body, label="", meta=meta, created=0.0), key))


@pytest.mark.parametrize("kind", BODIES)
def test_what_jitd_writes_has_no_flaw(kind):
    """The bodies that tunes, compiles and checks leave pass, with what later versions may add."""
    assert found(kind, BODIES[kind]) is None
    assert found(kind, {**BODIES[kind], "new": [1, {"more": 2}]}) is None


@pytest.mark.parametrize(
    ("kind", "name"), [(k, name) for k, b in BODIES.items() for name in b if name != "signature"]
)
def test_each_field_is_looked_at(kind, name):
    """A body that lacks a field, or has something of another type there, is refused by its name."""
    assert found(kind, {n: v for n, v in BODIES[kind].items() if n != name}) == f"it lacks {name}"
    other = {"registers": {"b": 1}}
    assert f"it has {name}=" in found(kind, {**BODIES[kind], name: other})


def test_a_cubin_under_a_false_digest():
    """A binary that claims the digest of another, which a check vouches for, is refused."""
    assert "digest of its cubin" in found("artifact", {**BODIES["artifact"], "cubin": b"evil"})


@pytest.mark.parametrize(
    "change",
    [
        {"us": 0}, {"us": float("inf")}, {"us": float("nan")}, {"us": True},
        {"params": {"BLOCK": [64]}}, {"outcomes": [{**TRIAL, "status": "great"}]},
        {"outcomes": [{**TRIAL, "timing": {"us": 1.0}}]}, {"check": {"registers": "many"}},
        {"outcomes": [{**TRIAL, "timing": {**TRIAL["timing"], "evil": 1}}]},
    ],
    ids=str,
)  # fmt: skip
def test_winners_that_would_make_a_reader_raise(change):
    """Times that are none, trials that are none, parameters that are no scalars: refused."""
    assert found("winner", {**BODIES["winner"], **change})


@pytest.mark.parametrize(
    "meta", [{"shape": ["a"]}, {"shape": 3}, {"target": 90}, {"us": "fast"}, {"op": ["x"]}], ids=str
)
def test_headers_that_would_make_a_list_raise(meta):
    """What `list` prints and `nearest` computes with is looked at, too."""
    assert "its meta has" in found("winner", BODIES["winner"], meta)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(kind=st.sampled_from(sorted(BODIES)), pick=st.integers(0, 100), value=VALUES)
def test_any_value_anywhere_gives_an_answer(kind, pick, value):
    """Whatever stands in whatever place, the answer is a reason or None: nothing raises."""
    body = copy.deepcopy(BODIES[kind])
    name = sorted(body)[pick % len(body)]
    body[name] = value
    assert found(kind, body) is None or isinstance(found(kind, body), str)
