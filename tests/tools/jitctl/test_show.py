"""`show`: what is known of a winner, and the landscape it was chosen from."""

import json

import pytest


def table_of(out):
    """The rows of the landscape, split at what separates columns; the header first."""
    lines = out[out.index("   config ") :].splitlines()
    return [line.split() for line in lines[: lines.index("") if "" in lines else None]]


def test_show_has_everything(cli, put_winner):
    """Key parts, config, share of floor, error, registers and what was dropped, by its reason."""
    put_winner("scale", "scale[bf16](64)", us=2.0)
    result = cli.run("show", "scale[bf16](64)")
    assert result.code == 0, result.err
    for text in (
        "key: problem",
        "50 % of it reached",
        "0.0078 at most, 0.031 allowed",
        "Dropped before compiling: 3 configs",
        "2 x  too small    plain(BLOCK=8, num_warps=8)\n",
        "1 x  no residual  fused\n",
    ):
        assert text in result.out
    document = json.loads(cli.run("show", "scale[bf16](64)", "--json").out)
    (winner,) = document["winners"]
    assert len(winner["outcomes"]) == 5
    assert winner["key"]["problem"] == "scale[bf16](64)"
    assert winner["marks"] == []


def test_landscape_is_sorted_and_whole(cli, put_winner):
    """All configs, the fastest first, then those without a time with what became of them."""
    put_winner("scale", "scale[bf16](64)", us=2.0)
    header, *rows = table_of(cli.run("show", "scale").out)
    assert " ".join(header) == (
        "config us x best of floor spread reps how error registers spills status"
    )
    assert [" ".join(row) for row in rows] == [
        "* plain(BLOCK=64, num_warps=4) 2.00 1.00x 50 % 2 % 40 graph 0.0078 40, 32 0 B timed",
        "plain(BLOCK=64, num_warps=8) 3.00 1.50x 33 % 2 % 40 graph 0.0078 40, 32 0 B timed",
        "plain(BLOCK=128, num_warps=4) 6.00 3.00x 17 % 2 % 40 graph 0.0078 40, 32 0 B "
        "dropped: too slow",
        "plain(BLOCK=128, num_warps=8) - - - - - - - 40, 32 512 B failed: spills",
        "plain(BLOCK=32, num_warps=4) - - - - - - - 40, 32 0 B wrong: beyond the bound",
    ]


def test_the_winner_need_not_be_the_fastest(cli, put_winner, outcome):
    """Near-ties are settled otherwise: the mark is at the winner, and --top keeps it."""
    points = [outcome({"BLOCK": n, "num_warps": 4}, us=2.0 + n / 1000) for n in (8, 16, 64, 128)]
    put_winner("scale", "scale[bf16](64)", outcomes=points, dropped={})
    result = cli.run("show", "scale", "--top", "1")
    first, second = table_of(result.out)[1:3]
    assert first[:2] == ["plain(BLOCK=8,", "num_warps=4)"]
    assert second[:2] == ["*", "plain(BLOCK=64,"]
    assert "... and 2 configs more: without --top" in result.out
    assert "BLOCK=16," not in result.out


def test_show_of_old_records(cli, put_winner, outcome):
    """A record that lacks what later versions note is shown, with a dash for what it lacks."""
    old = outcome({"BLOCK": 64, "num_warps": 4}, us=2.0)
    for name in ("variant", "params", "registers", "spills"):
        del old[name]
    lacking = ["noisy", "drift", "driver", "tuned_at", "dropped", "check"]
    put_winner("scale", "scale[bf16](64)", without=lacking, outcomes=[old])
    result = cli.run("show", "scale")
    assert result.code == 0, result.err
    assert " ".join(table_of(result.out)[1]) == (
        "* plain(BLOCK=64, num_warps=4) 2.00 1.00x 250 % 2 % 40 graph 0.0078 - - timed"
    )


def test_show_says_what_speaks_against_it(card, put_winner):
    """Noise with its drift, another driver than here, and another bucket, each with what to do."""
    put_winner(
        "scale", "scale[bf16](64)", device="NVIDIA H100", noisy=True, drift=0.043,
        tuned_at="scale[bf16](32)",
    )  # fmt: skip
    upgraded = {"happens": ["--driver=590.2"]}
    result = card.run("show", "scale", **upgraded)
    lines = {line.split("  ")[0]: line for line in result.out.splitlines()}
    assert "4.3 %" in lines["noisy"] and "--again noisy" in lines["noisy"]
    assert "580.1, here is 590.2" in lines["stale"] and "--again stale" in lines["stale"]
    assert "scale[bf16](32)" in lines["tuned at"]
    document = json.loads(card.run("show", "scale", "--json", **upgraded).out)
    assert document["winners"][0]["marks"] == ["noisy", "stale"]


def test_show_of_a_good_winner_has_no_reservations(card, put_winner):
    """Measured on a quiet card, under this driver, at its own bucket: nothing speaks against it."""
    put_winner("scale", "scale[bf16](64)", device="NVIDIA H100")
    lines = [line.split("  ")[0] for line in card.run("show", "scale").out.splitlines()]
    assert "driver" in lines
    assert not {"noisy", "stale", "tuned at"} & set(lines)


def test_show_by_a_part(cli, put_winner):
    """A part that is in one signature alone stands for it, an exact one wins over longer ones."""
    put_winner("scale", "scale[bf16](64)")
    put_winner("scale", "scale[bf16](64)(64)")
    put_winner("scale", "scale[fp16](128)")
    assert cli.run("show", "fp16").out.startswith("scale[fp16](128)\n")
    assert cli.run("show", "scale[bf16](64)").out.startswith("scale[bf16](64)\n")
    assert "in 3 signatures" in cli.refused("show", "scale", code=2)


@pytest.mark.compiler
def test_show_finds_the_bucket(cli, put_winner):
    """A signature that was not tuned itself shows the winner of its bucket."""
    put_winner("outside_scale", "outside_scale[bf16](1024)")
    result = cli.run("show", "outside_scale[bf16](1000)", "--import", "outside.ops")
    assert result.out.startswith("outside_scale[bf16](1024)\n"), result.err


def test_show_names_the_nearest(cli, put_winner):
    """What is not there is a failure that names what comes nearest."""
    put_winner("scale", "scale[bf16](64)")
    put_winner("shift", "shift[fp16](4096)")
    message = cli.refused("show", "scale[bf16](65", code=1)
    assert "Nearest: scale[bf16](64)" in message


def test_show_of_nothing(cli):
    """Without any winner, show fails and says how to get one."""
    assert "jitctl warmup" in cli.refused("show", "scale", code=1)
