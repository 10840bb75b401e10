"""`tune`: an op at some shapes, and its landscape. The card is a fake."""

import json

import pytest

SCALE = ["tune", "outside_scale", "--import", "outside.ops"]


def ageless(out):
    """What is printed, but for the lines that tell an age."""
    return [line for line in out.splitlines() if not line.startswith("age ")]


def test_tunes_each_shape_and_shows_it(card):
    """Every bucket is tuned once, in the dtype asked for, and printed exactly as show prints it."""
    result = card.run(*SCALE, "1000", "1024", "20x100", "--dtype", "fp16")
    assert result.code == 0, result.err
    assert "[2/2] tuning outside_scale[fp16](2048)" in result.err
    assert result.out.count("   config ") == 2
    one, two = (card.run("show", f"[fp16]({n})").out for n in (1024, 2048))
    assert ageless(result.out) == ageless(f"{one}\n{two}")
    assert "*  elementwise(BLOCK=2048, num_warps=8)  2.00" in one


def test_arguments_are_set(card):
    """--set reaches the signature, and so does the layout behind a shape."""
    options = ["--set", "groups=4", "--set", "numerics=fast", "--json"]
    result = card.run("tune", "group_norm_silu", "1x64x8x8:channels_last", *options)
    assert result.code == 0, result.err
    (row,) = json.loads(result.out)["rows"]
    assert row["signature"].startswith("group_norm_silu[bf16](1x64x")
    assert ":channels_last_3d, groups=4, numerics=fast)" in row["signature"]


def test_a_whole_signature_will_do(card):
    """Printed signatures stand in the place of op and shape, several of them."""
    texts = ["outside_scale[bf16](64)", "outside_scale[fp32](64)"]
    result = card.run("tune", *texts, "--import", "outside.ops", "--json")
    assert [row["signature"] for row in json.loads(result.out)["rows"]] == texts


def test_for_programs(card):
    """--json gives one document: the rows of the tune, and the winners as show --json has them."""
    document = json.loads(card.run(*SCALE, "1000", "--json").out)
    assert (document["device"], document["arch"]) == ("NVIDIA H100", "sm_90")
    assert [(row["status"], row["us"]) for row in document["rows"]] == [("tuned", 2.0)]
    assert document["stats"]["tunes"] == 1
    (winner,) = json.loads(card.run("show", "outside_scale", "--json").out)["winners"]
    assert len(winner["outcomes"]) == 6
    assert [{**one, "last_used": 0} for one in document["winners"]] == [{**winner, "last_used": 0}]


def test_a_winner_is_shown_and_with_again_tuned_anew(card):
    """What is tuned is shown at once, with a word how to tune it anew; --again does."""
    first = card.run(*SCALE, "1000")
    second = card.run(*SCALE, "1000")
    assert ageless(second.out) == ageless(first.out)
    assert "outside_scale[bf16](1024) was tuned before; to tune it anew: --again" in second.err
    assert "was tuned before" not in first.err
    again = json.loads(card.run(*SCALE, "1000", "--again", "--json").out)
    assert again["stats"]["tunes"] == 1
    assert again["rows"][0]["status"] == "tuned"


def test_ctrl_c_keeps_what_is_tuned(card):
    """Ctrl-C at the second shape keeps the first and says that the same command goes on."""
    result = card.run(*SCALE, "1000", "5000", happens=["--ctrl-c"])
    assert result.code == 130
    assert "1 of 2 signatures are tuned and kept" in result.lines[-1]
    assert "The same command goes on from there." in result.lines[-1]
    assert "Nothing to resume" in card.run("warmup", "--resume").out
    rows = json.loads(card.run(*SCALE, "1000", "5000", "--json").out)["rows"]
    assert [row["status"] for row in rows] == ["known", "tuned"]


def test_hopeless(card):
    """Where no config is right the reason is said, and the exit code is 1."""
    result = card.run(*SCALE, "1000", happens=["--hopeless"])
    assert result.code == 1
    assert "jitctl: failed: outside_scale[bf16](1024): " in result.lines[-1]
    assert "off by one" in result.lines[-1]


GROUP_NORM = ["tune", "group_norm_silu"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tune"], "OP"),
        (["tune", "group_norm"], "no SHAPE"),
        (["tune", "norm", "1x64x8"], "group_norm_silu"),
        (["tune", "norm[bf16](1x64x8)"], "group_norm_silu"),
        ([*GROUP_NORM, "1x64x8"], "--set groups=INT"),
        ([*GROUP_NORM, "1x64x8", "--set", "groups=many"], "--set groups=INT"),
        ([*GROUP_NORM, "1x64x8", "--set", "groups=5"], "64 channels"),
        ([*GROUP_NORM, "1x64x8", "--set", "groups"], "NAME=VALUE"),
        ([*GROUP_NORM, "1x64x8", "--set", "groups=4", "--set", "groups=8"], "twice"),
        ([*GROUP_NORM, "1x64x8", "--set", "groups=4", "--set", "group=4"], "has no group"),
        ([*GROUP_NORM, "64", "--set", "groups=4"], "allowed are 2 to 5"),
        ([*GROUP_NORM, "1x64x?", "--set", "groups=4"], "1x64x32x32"),
        ([*GROUP_NORM, "1x0x8", "--set", "groups=4"], "sizes from 1"),
        ([*GROUP_NORM, "1x64x8:upright", "--set", "groups=4"], "layout 'upright'"),
        ([*GROUP_NORM, "1x64x8", "--dtype", "int4"], "fp32"),
        (["tune", "group_norm_silu[bf16](1x64x8, groups=4)", "--dtype", "fp16"], "part of it"),
        (["tune", "group_norm_silu[int4](1x64x8, groups=4)"], "fp16"),
        (["tune", "group_norm_silu[fp64](1x64x8, groups=4)"], "nothing to tune"),
        ([*GROUP_NORM, "1x64x8", "--import", "no.such"], "No module named 'no'"),
        ([*GROUP_NORM, "1x64x8", "--set", "groups=4", "--device", "1"], "there are 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage(card, arguments, words):
    """What cannot be tuned is one line that says what can, before anything is built."""
    assert words in card.refused(*arguments, code=2)
    assert not card.folder.exists()


def test_without_a_gpu(cli):
    """Without a GPU, tune fails with the reason, whatever else could be said."""
    message = cli.refused("tune", "group_norm_silu", "1x64x8x8", "--set", "groups=4", code=1)
    assert "no GPU to tune on: " in message
    assert not cli.folder.exists()
