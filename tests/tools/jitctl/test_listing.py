"""`list` and `show`: what was tuned, read from headers and bodies."""

import json
from pathlib import Path

import pytest


def test_list_of_nothing(cli):
    """Without a cache, list says how to begin, succeeds, and makes no folder."""
    result = cli.run("list")
    assert result.code == 0
    assert "jitctl warmup" in result.out
    assert not cli.folder.exists()


def test_list_shows_winners(cli, put_winner):
    """A winner's line has its config, time, share of the floor, speed-up and card."""
    put_winner("scale", "scale[bf16](64)", us=2.0)
    (line,) = [line for line in cli.run("list").out.splitlines() if line.startswith("scale")]
    for word in ("scale[bf16](64)", "plain(BLOCK=64)", "2.0", "50 %", "4.00x", "NVIDIA Test"):
        assert word in line


def test_list_for_programs(cli, put_winner):
    """--json gives the same figures as numbers, and counts of all that is in the cache."""
    put_winner("scale", "scale[bf16](64)", us=2.0)
    put_winner("shift", "shift[bf16](64)")
    document = json.loads(cli.run("list", "--op", "scale", "--json").out)
    (record,) = document["records"]
    assert (record["us"], record["floor_share"], record["speedup"]) == (2.0, 0.5, 4.0)
    assert document["summary"]["kinds"] == {"winner": 2}


def test_list_refuses_an_unknown_kind(cli):
    """A kind that does not exist is wrong usage, and the message names those that do."""
    assert "artifact" in cli.refused("list", "--kind", "cubin", code=2)


def test_reader_that_leaves_early(cli, put_winner):
    """A pipe that is closed before anything is written ends the command without a word."""
    put_winner("scale", "scale[bf16](64)")
    process = cli.start("list")
    process.stdout.close()
    assert process.wait(60) == 1
    assert process.stderr.read() == ""
    process.stderr.close()


def test_full_stdout(cli, put_winner):
    """Output that cannot be written is a failure, not a success with nothing in the file."""
    put_winner("scale", "scale[bf16](64)")
    with Path("/dev/full").open("w") as full:
        process = cli.start("list", stdout=full)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "No space left" in error
    assert "Traceback" not in error


def test_show_has_everything(cli, put_winner):
    """Key parts, config, every timing, share of floor, error, registers and what was dropped."""
    put_winner("scale", "scale[bf16](64)", us=2.0)
    result = cli.run("show", "scale[bf16](64)")
    assert result.code == 0
    for text in (
        "key: problem",
        "plain(BLOCK=64)",
        "plain(BLOCK=128)",
        "wrong: beyond the bound",
        "dropped: too slow",
        "50 % of it reached",
        "0.0078 at most, 0.031 allowed",
        "registers",
        "40",
        "2 x too small",
    ):
        assert text in result.out
    document = json.loads(cli.run("show", "scale[bf16](64)", "--json").out)
    (winner,) = document["winners"]
    assert len(winner["outcomes"]) == 3
    assert winner["key"]["problem"] == "scale[bf16](64)"


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
