"""`warmup` with a card: tunes, reports, and hands over to strict. The card is a fake."""

import json
from pathlib import Path

import pytest

WITH_CARD = str(Path(__file__).with_name("with_card.py"))
SCALE = [
    "warmup", "--import", "outside.ops",
    "--signature", "outside_scale[bf16](1000)", "--signature", "outside_scale[fp32](3000)",
]  # fmt: skip


@pytest.fixture
def card(cli):
    """The command line on a machine with a card."""
    cli.program = [WITH_CARD]
    return cli


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
    card.program = [WITH_CARD, "--ctrl-c"]
    result = card.run(*SCALE)
    assert result.code == 130
    assert "1 of 2 signatures are tuned and kept" in result.lines[-1]
    card.program = [WITH_CARD]
    assert json.loads(card.run(*SCALE, "--json").out)["stats"]["tunes"] == 1


def test_hopeless_signature(card):
    """A signature for which no config is right fails with the reason, and exit code 1."""
    card.program = [WITH_CARD, "--hopeless"]
    result = card.run(*SCALE)
    assert result.code == 1
    assert "off by one" in result.err
    assert "reference" in result.out
    assert "Traceback" not in result.err


def test_device_that_is_not_there(card):
    """--device past the last card is wrong usage that says how many there are."""
    assert "there are 1" in card.refused(*SCALE, "--device", "1", code=2)


def test_compile_only_with_a_card(card):
    """--mode compile compiles for the card that is here, and leaves the tuning to be done."""
    result = card.run(*SCALE, "--mode", "compile")
    assert result.code == 0
    assert "2 signatures to tune: jitctl warmup --import outside.ops" in result.out
