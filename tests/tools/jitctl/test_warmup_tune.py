"""`warmup` with a card: tunes, reports, and hands over to strict. The card is a fake."""

import json
import shlex

from jitd.cache.keys import Key

SCALE = [
    "warmup", "--import", "outside.ops",
    "--signature", "outside_scale[bf16](1000)", "--signature", "outside_scale[fp32](3000)",
]  # fmt: skip


def test_tunes_and_reports(card):
    """Each signature is tuned; the table has us, share of floor and speed-up; strict is next."""
    result = card.run(*SCALE)
    assert result.code == 0, result.err
    (row,) = [line for line in result.out.splitlines() if "[bf16]" in line]
    for word in ("outside_scale[bf16](1024)", "tuned", "2.0", "50 %", "1.50x"):
        assert word in row
    assert "[1/2] tuning outside_scale[bf16](1024)" in result.err
    assert "JITD_MODE=strict" in result.out
    assert "outside_scale[fp32](4096)" in card.run("list").out
    assert "config" in card.run("show", "fp32").out


def test_second_warmup_has_nothing_to_do(card):
    """A second warmup answers from the receipt; of two winners, only a lost one is tuned again."""
    first = json.loads(card.run(*SCALE, "--json").out)
    assert first["mode"] == "tune"
    assert first["stats"]["tunes"] == 2
    second = json.loads(card.run(*SCALE, "--json").out)
    assert second["targets"][0]["receipt"]
    assert second["stats"] == {}
    next(path for path in (card.folder / "winner").rglob("*") if path.is_file()).unlink()
    third = json.loads(card.run(*SCALE, "--json").out)
    assert sorted(row["status"] for row in third["targets"][0]["rows"]) == ["known", "tuned"]
    assert third["stats"]["tunes"] == 1


def test_dry_run_says_what_is_to_tune(card):
    """Before: what would be tuned, among how many candidates. After: ready."""
    assert card.run(*SCALE, "--dry-run").out.count("to tune: 6 candidates") == 2
    assert not card.folder.exists()
    assert card.run(*SCALE[:-2]).code == 0
    assert "ready" in card.run(*SCALE, "--dry-run").out


def test_ctrl_c_keeps_winners(card):
    """Ctrl-C while the second signature is tuned keeps the first, and says so."""
    result = card.run(*SCALE, happens=["--ctrl-c"])
    assert result.code == 130
    assert "1 of 2 signatures are tuned and kept" in result.lines[-1]
    assert "jitctl warmup --resume" in result.lines[-1]
    assert json.loads(card.run(*SCALE, "--json").out)["stats"]["tunes"] == 1


def test_hopeless_signature(card):
    """A signature for which no config is right fails with the reason, exit code 1, and a remedy."""
    result = card.run(*SCALE, happens=["--hopeless"])
    assert result.code == 1
    assert "off by one" in result.err
    assert "reference" in result.out
    remedy = result.out.splitlines()[-1].partition("To try one anew: ")[2]
    command, *arguments = shlex.split(remedy)
    assert (command, card.run(*arguments).code) == ("jitctl", 0)


def test_device_that_is_not_there(card):
    """--device past the last card is wrong usage that says how many there are."""
    assert "there are 1" in card.refused(*SCALE, "--device", "1", code=2)


def test_compile_only_with_a_card(card):
    """--mode compile compiles for the card that is here, and leaves the tuning to be done."""
    result = card.run(*SCALE, "--mode", "compile")
    assert result.code == 0
    assert "2 signatures to tune: jitctl warmup --import outside.ops" in result.out


def tuned(result):
    """The signatures that were tuned, not read from a receipt."""
    (target,) = json.loads(result.out)["targets"]
    rows = [] if target["receipt"] else target["rows"]
    return [row["signature"] for row in rows if row["status"] == "tuned"]


def test_noisy_winners_are_tuned_again_when_asked(card):
    """--again noisy tunes what a restless card measured, and nothing else; then nothing is left."""
    assert card.run(*SCALE[:-2]).code == 0
    restless = card.run(*SCALE, "--json", happens=["--restless"])
    assert tuned(restless) == ["outside_scale[fp32](4096)"]
    assert tuned(card.run(*SCALE, "--json")) == []
    ahead = card.run(*SCALE, "--again", "noisy", "--dry-run").out.splitlines()
    assert ["to tune again" in line for line in ahead if "outside_scale" in line] == [False, True]
    again = card.run(*SCALE, "--again", "noisy", "--json")
    assert tuned(again) == ["outside_scale[fp32](4096)"]
    assert tuned(card.run(*SCALE, "--again", "noisy", "--json")) == []


def test_stale_winners_are_tuned_again_when_asked(card):
    """Under another driver winners serve as they are, until --again stale tunes them there."""
    assert card.run(*SCALE).code == 0
    upgraded = {"happens": ["--driver=590.2"]}
    assert tuned(card.run(*SCALE, "--json", **upgraded)) == []
    ahead = card.run(*SCALE, "--again", "stale", "--dry-run", **upgraded)
    assert ahead.out.count("to tune again: 6 candidates") == 2
    assert len(tuned(card.run(*SCALE, "--again", "stale", "--json", **upgraded))) == 2
    assert tuned(card.run(*SCALE, "--again", "stale", "--json", **upgraded)) == []


def test_a_receipt_answers_no_again(card):
    """--again all tunes everything although a receipt says that nothing is missing."""
    assert card.run(*SCALE).code == 0
    again = json.loads(card.run(*SCALE, "--again", "all", "--json").out)
    assert not again["targets"][0]["receipt"]
    assert again["stats"]["tunes"] == 2
    assert json.loads(card.run(*SCALE, "--json").out)["targets"][0]["receipt"]


def test_a_dry_run_counts_what_is_left(card, store):
    """Of a tune that was killed, the configs in its journal are not counted again."""
    (op, text, kept) = ("outside_scale", "outside_scale[bf16](1024)", 4)
    assert card.run(*SCALE[:-2]).code == 0
    (header,) = store.headers("winner", op)
    outcomes = store.record_for(header).body["outcomes"][:kept]
    store.remove(header)
    key = Key.of("timing", op, tuning=header.digest)
    store.put(key, {"outcomes": outcomes}, label=text, meta={"done": kept, "of": 6})
    assert "to tune: 2 of 6 candidates" in card.run(*SCALE[:-2], "--dry-run").out
