"""The space: what it holds, in which order, and what it refuses."""

import subprocess
import sys

import pytest
from jitd.autotune.space import Space, name_of


def small_default(problem):
    return {"num_warps": 4, "BLOCK": 1024}


def rows_fit(params, problem):
    if params["BLOCK"] > problem["row"]:
        return f"BLOCK {params['BLOCK']} is wider than the row of {problem['row']}"
    return None


SPACE = Space({"BLOCK": (1024, 2048), "num_warps": (4, 8)}, where=rows_fit, default=small_default)


def test_configs_are_the_product_in_the_order_of_the_axes():
    """The last axis runs fastest, and names keep the order of declaration."""
    kept, dropped = SPACE.configs({"row": 4096})
    assert [list(params.items()) for params in kept] == [
        [("BLOCK", 1024), ("num_warps", 4)],
        [("BLOCK", 1024), ("num_warps", 8)],
        [("BLOCK", 2048), ("num_warps", 4)],
        [("BLOCK", 2048), ("num_warps", 8)],
    ]
    assert dropped == []


def test_hopeless_points_are_dropped_with_their_reason():
    """What `where` objects to is listed apart, with what it said."""
    kept, dropped = SPACE.configs({"row": 1024})
    assert [params["BLOCK"] for params in kept] == [1024, 1024]
    assert dropped[0] == (
        {"BLOCK": 2048, "num_warps": 4},
        "BLOCK 2048 is wider than the row of 1024",
    )


def test_a_predicate_cannot_change_the_point_it_judges():
    """`where` gets a copy, so that one that writes to it spoils nothing."""
    space = Space({"A": (1, 2)}, where=lambda p, _: p.clear(), default=lambda _: {"A": 1})
    assert space.configs(None)[0] == [{"A": 1}, {"A": 2}]


def test_a_space_without_axes_has_one_config():
    """A variant with nothing to tune is still a candidate."""
    assert Space({}, default=lambda _: {}).configs(None) == ([{}], [])


def test_the_default_comes_in_the_order_of_the_axes():
    """However the callable writes it, the default prints like the same point of the product."""
    assert list(SPACE.default(None)) == ["BLOCK", "num_warps"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"BLOCK": 1024}, "num_warps"),
        ({"BLOCK": 512, "num_warps": 4}, "BLOCK=512"),
        ({"BLOCK": 1024, "num_warps": 4, "num_stages": 2}, "num_stages"),
    ],
)
def test_a_default_outside_of_the_product_is_refused_by_axis(given, message):
    """The error names the axis that is missing, off its values, or unknown."""
    space = Space({"BLOCK": (1024, 2048), "num_warps": (4, 8)}, default=lambda _: given)
    with pytest.raises(ValueError, match=message):
        space.default(None)


def test_true_and_one_are_two_values():
    """They compare equal in Python and select different code, so a default has to be exact."""
    space = Space({"FLAG": (False, True), "N": (0, 1)}, default=lambda _: {"FLAG": 1, "N": 1})
    with pytest.raises(ValueError, match="FLAG=1"):
        space.default(None)
    assert len(Space({"X": (1, True)}, default=lambda _: {"X": 1}).configs(None)[0]) == 2


@pytest.mark.parametrize("values", [(), (4, 4)])
def test_an_axis_without_or_with_repeated_values_is_refused(values):
    """Both are slips that would make a space of nothing or of twins."""
    with pytest.raises(ValueError, match="num_warps"):
        Space({"num_warps": values}, default=lambda _: {})


def test_names_read_like_calls():
    """A config prints as variant and parameters, strings in quotes, so that names differ."""
    assert name_of("two_launch", {"BLOCK": 1024, "num_warps": 4}) == (
        "two_launch(BLOCK=1024, num_warps=4)"
    )
    assert name_of("v", {"A": "1"}) != name_of("v", {"A": 1})


def test_a_space_says_its_size():
    """The repr states axes and the number of values on each."""
    assert repr(SPACE) == "Space(BLOCK x2, num_warps x2)"


def test_the_search_side_imports_no_torch():
    """Space, policy and search serve processes that must not pay for torch."""
    script = (
        "import sys, jitd.autotune.space, jitd.autotune.policy, jitd.autotune.search,"
        " jitd.autotune.timing, jitd.autotune.verify; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=60, check=False).returncode == 0
