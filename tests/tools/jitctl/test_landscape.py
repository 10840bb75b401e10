"""A landscape over two axes: which axes, which cells, what a cell says."""

import pytest
from jitd.tools.jitctl.landscape import Cell, Landscape


@pytest.fixture
def land(outcome):
    """Makes a landscape of (params, us or fate, variant): the first timed config wins."""

    def make(*points, dropped=None):
        outcomes = [
            outcome(params, us=what, variant=variant)
            if isinstance(what, float)
            else outcome(params, status=what, variant=variant)
            for params, what, variant in points
        ]
        winner = next((o["config"] for o in outcomes if o["timing"]), "none")
        body = {"config": winner, "floor_us": 1.0, "outcomes": outcomes, "dropped": dropped or {}}
        return Landscape.of(body)

    return make


def test_a_cell_is_the_best_over_the_other_axes(land):
    """Configs that share both axes are one cell: the fastest time, the mark if one of them won."""
    axes = ({"BLOCK": 64, "num_warps": 4, "PARTS": parts} for parts in (1, 2, 4))
    (panel,) = land(
        (next(axes), 3.0, "plain"), (next(axes), 2.0, "plain"), (next(axes), "wrong", "plain"),
        ({"BLOCK": 8, "num_warps": 4, "PARTS": 1}, 9.0, "plain"),
    ).panels()  # fmt: skip
    assert panel.cells == {(64, 4): Cell(2.0, "", True), (8, 4): Cell(9.0, "", False)}
    assert (panel.xs, panel.ys) == ([8, 64], [4])


@pytest.mark.parametrize(
    ("fates", "says"),
    [
        (["dropped", "wrong", "failed"], "wrong"),
        (["dropped", "failed"], "failed"),
        (["dropped"], "dropped"),
    ],
    ids=" ".join,
)
def test_a_cell_without_a_time_says_why(land, fates, says):
    """The worst that became of the configs of a cell is its word."""
    points = [
        ({"BLOCK": 8, "num_warps": 4, "PARTS": n}, fate, "plain") for n, fate in enumerate(fates)
    ]
    (panel,) = land(({"BLOCK": 64, "num_warps": 4, "PARTS": 0}, 2.0, "plain"), *points).panels()
    assert panel.cells[8, 4] == Cell(None, says, False)


def test_what_was_never_compiled_is_in_the_picture(land):
    """Configs dropped before compiling are cells, read from their names."""
    dropped = {
        "too small": ["plain(BLOCK=8, num_warps=16)"],
        "no residual": ["fused", "other(A=1)"],
    }
    (panel,) = land(({"BLOCK": 64, "num_warps": 4}, 2.0, "plain"), dropped=dropped).panels()
    assert panel.cells[8, 16] == Cell(None, "dropped", False)
    assert (panel.xs, panel.ys) == ([8, 64], [4, 16])


@pytest.mark.parametrize(
    ("names", "asked", "axes"),
    [
        (("PARTS", "STATS_BLOCK", "BLOCK", "num_warps"), (None, None), ("BLOCK", "num_warps")),
        (("PARTS", "ROW_BLOCK", "num_warps"), (None, None), ("ROW_BLOCK", "num_warps")),
        (("CH", "ACROSS", "num_warps", "EARLY"), (None, None), ("CH", "num_warps")),
        (("BLOCK", "num_stages"), (None, None), ("BLOCK", "num_stages")),
        (("CH", "ACROSS", "num_warps"), ("ACROSS", "CH"), ("ACROSS", "CH")),
        (("CH", "ACROSS", "num_warps"), ("num_warps", None), ("num_warps", "ACROSS")),
    ],
    ids=str,
)
def test_which_axes(land, names, asked, axes):
    """BLOCK or what is named like it against num_warps, where there is no better or other wish."""
    points = [(dict.fromkeys(names, value), 2.0, "plain") for value in (1, 2)]
    (panel,) = land(*points).panels(*asked)
    assert (panel.x, panel.y) == axes


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        ("BLOK", None, "plain has the axes BLOCK, num_warps"),
        (None, "CH", "plain has the axes BLOCK, num_warps"),
        ("BLOCK", "BLOCK", "two different axes"),
    ],
)
def test_axes_that_cannot_be(land, x, y, words):
    """An axis that the winner's variant does not have is refused; the message names its axes."""
    points = [({"BLOCK": 1, "num_warps": 4}, 1.0, "plain"), ({"CH": 1, "num_warps": 4}, 2.0, "b")]
    with pytest.raises(ValueError, match=words):
        land(*points).panels(x, y)


def test_a_variant_with_one_axis_is_refused(land):
    """Two axes are needed, and the message says which one there is."""
    with pytest.raises(ValueError, match="no two axes to draw, only num_warps"):
        land(({"num_warps": 4}, 1.0, "plain")).panels()


def test_a_panel_for_each_variant_that_was_timed(land):
    """The winner's variant is first; one that was never timed or lacks an axis has no panel."""
    points = [
        ({"BLOCK": 1, "num_warps": 4}, "wrong", "never"),
        ({"CH": 1, "num_warps": 4}, 1.5, "split"),
        ({"BLOCK": 1, "num_warps": 4}, 1.0, "plain"),
    ]
    landscape = land(*points)
    assert [(p.variant, p.x) for p in landscape.panels()] == [("split", "CH"), ("plain", "BLOCK")]
    assert [p.variant for p in landscape.panels(x="CH")] == ["split"]
    assert landscape.best_us == 1.0
