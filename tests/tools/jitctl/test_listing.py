"""`list`: what was tuned, and what is not finished, read from headers alone."""

import json
from pathlib import Path

from jitd.cache.keys import Key


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
    for word in (
        "scale[bf16](64)",
        "plain(BLOCK=64, num_warps=4)",
        "2.0",
        "50 %",
        "4.00x",
        "NVIDIA Test",
    ):
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


def test_list_marks_what_is_noisy(cli, put_winner):
    """A winner that was measured on a restless card is marked, its quiet neighbour is not."""
    put_winner("scale", "scale[bf16](64)", noisy=True)
    put_winner("scale", "scale[bf16](128)")
    lines = {line.split()[0]: line for line in cli.run("list").out.splitlines() if line}
    assert " noisy " in lines["scale[bf16](64)"]
    assert "noisy" not in lines["scale[bf16](128)"]


def test_list_marks_what_is_stale(card, put_winner):
    """Another driver than the one here makes a winner of this card stale, and of no other card."""
    put_winner("scale", "scale[bf16](64)", device="NVIDIA H100")
    put_winner("scale", "scale[bf16](128)", noisy=True)

    def marks(*happens):
        records = json.loads(card.run("list", "--json", happens=happens).out)["records"]
        return {record["label"]: record["marks"] for record in records}

    assert marks() == {"scale[bf16](64)": [], "scale[bf16](128)": ["noisy"]}
    assert marks("--driver=590.2") == {"scale[bf16](64)": ["stale"], "scale[bf16](128)": ["noisy"]}
    lines = card.run("list", happens=["--driver=590.2"]).out.splitlines()
    assert [line.split()[0] for line in lines if " stale " in line] == ["scale[bf16](64)"]


def test_list_of_old_records(cli, put_winner):
    """Winners of a version that noted neither noise nor driver are listed without a mark."""
    put_winner("scale", "scale[bf16](64)", without=["noisy", "driver"])
    result = cli.run("list")
    assert result.code == 0
    assert "noisy" not in result.out
    assert json.loads(cli.run("list", "--json").out)["records"][0]["marks"] == []


def test_list_says_what_is_unfinished(cli, store):
    """The journal of a tune under way is one line with how far it is, and no winner."""
    meta = {"device": "NVIDIA Test", "target": "sm_90", "done": 34, "of": 120}
    key = Key.of("timing", "scale", tuning="0")
    store.put(key, {"outcomes": []}, label="scale[bf16](64)", meta=meta)
    result = cli.run("list")
    assert result.code == 0
    assert "No winner records." in result.out
    assert "tuning scale[bf16](64) on NVIDIA Test, 34 of 120 (" in result.out
    (begun,) = json.loads(cli.run("list", "--json").out)["unfinished"]
    assert (begun["kind"], begun["done"], begun["of"]) == ("timing", 34, 120)
    assert "Not finished" not in cli.run("list", "--op", "shift").out
