"""`gc`, `stats`, `verify` and `why`: what an operator asks of a cache."""

import json
import os
import re
import time

import pytest
from jitd.cache import counters
from jitd.cache.keys import Key
from jitd.cache.store import Store

LONG_AGO = time.time() - 40 * 86_400
SIGNATURE = "group_norm_silu[bf16](1x1024x24576, groups=32)"


@pytest.fixture
def filled(cli, store, put_winner):
    """A winner and two binaries, all last used long ago, and one binary used now."""
    put_winner("scale", "scale[bf16](64)")
    for n in range(3):
        key = Key.of("artifact", "scale_kernel", n=n, target="sm_90")
        store.put(key, {"cubin": bytes(1000)}, meta={"op": "scale", "target": "sm_90"})
    for name in sorted(cli.files()):
        if not name.endswith(key.digest):
            os.utime(cli.folder / name, (LONG_AGO, LONG_AGO))
    return cli


def kinds(cli) -> list[str]:
    return sorted(name.partition("/")[0] for name in cli.files())


def test_gc_without_need(filled):
    """Within its bounds nothing goes, and that is said."""
    result = filled.run("gc")
    assert result.code == 0
    assert result.out.startswith("Nothing to remove")
    assert kinds(filled) == ["artifact"] * 3 + ["winner"]


def test_gc_by_files(filled):
    """It says what it removed by kind, and the winner outlives the binaries."""
    result = filled.run("gc", "--max-files", "2")
    assert result.code == 0
    assert "artifact: 2 files" in result.out
    assert "Left: 2 files" in result.out
    assert kinds(filled) == ["artifact", "winner"]


def test_gc_by_settings(filled):
    """Without options the bounds are those of the settings."""
    assert (
        filled.run("gc", env={"JITD_CACHE_MAX_BYTES": "1", "JITD_CACHE_MAX_FILES": "9"}).code == 0
    )
    assert kinds(filled) == []


def test_gc_by_age(filled):
    """--older-than removes what was not used for so long, but no winner."""
    document = json.loads(filled.run("gc", "--older-than", "30d", "--json").out)
    assert document["removed"]["kinds"].keys() == {"artifact"}
    assert document["removed"]["files"] == 2
    assert document["left"]["files"] == 2
    assert kinds(filled) == ["artifact", "winner"]


def test_gc_dry_run(filled):
    """A dry run announces what a run does, and does nothing."""
    before = filled.files()
    planned = filled.run("gc", "--max-bytes", "0", "--dry-run")
    assert filled.files() == before
    done = filled.run("gc", "--max-bytes", "0")
    assert planned.out.replace("Would remove", "Removed") == done.out
    assert filled.files() == set()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--max-bytes", "many"], "500M"), (["--older-than", "soon"], "30d")],
    ids=["size", "age"],
)
def test_gc_refuses(filled, arguments, words):
    """A size or age that means nothing is refused, and names what is allowed."""
    assert words in filled.refused("gc", *arguments, code=2)


def test_stats(filled, store):
    """Entries and bytes by kind, op and architecture; the counters of processes that ended."""
    counters.add(store.root, {"hits": 3, "compiles": 2})
    counters.add(store.root, {"hits": 4})
    document = json.loads(filled.run("stats", "--json").out)
    assert document["records"]["files"] == 4
    assert {name: one["files"] for name, one in document["kinds"].items()} == {
        "artifact": 3, "winner": 1
    }  # fmt: skip
    assert document["ops"]["scale"]["files"] == document["archs"]["sm_90"]["files"] == 4
    assert document["counters"] == {"compiles": 2, "hits": 7}
    assert document["unreadable"] == 0
    text = filled.run("stats").out
    assert "compiles" in text
    assert "4 entries" in text


def test_stats_of_the_folders_behind(filled, store):
    """Hits behind are shown; folders left out, too, with the command that says why."""
    counters.add(store.root, {"hits": 5, "hits_behind": 4, "left_out": 2})
    text = filled.run("stats").out
    assert re.search(r"hits_behind +4\n", text)
    assert re.search(r"left_out +2\n", text)
    assert "jitctl doctor" in text


def test_stats_of_a_damaged_cache(filled):
    """What cannot be read is left out, and counted."""
    name = min(filled.files())
    (filled.folder / name).write_bytes(b"bad")
    assert json.loads(filled.run("stats", "--json").out)["unreadable"] == 1
    assert "jitctl verify" in filled.run("stats").out


def test_verify_a_good_cache(filled):
    """Nothing wrong: exit 0; a binary that nobody checked is no fault."""
    result = filled.run("verify")
    assert result.code == 0
    assert "4 good records" in result.out
    assert "0 faults" in result.out


def test_verify_and_repair(filled):
    """A fault is shown and exits with 1; a repair removes it and exits with 0."""
    name = min(filled.files())
    (filled.folder / name).write_bytes(b"bad")
    shown = filled.run("verify")
    assert shown.code == 1
    assert name in shown.out
    assert "jitctl verify --repair" in shown.out
    assert name in filled.files()
    document = json.loads(filled.run("verify", "--repair", "--json").out)
    assert document["wrong"] == 0
    assert [(fault["what"], fault["repaired"]) for fault in document["faults"]] == [
        ("damaged", True)
    ]
    assert name not in filled.files()
    assert filled.run("verify").code == 0


def test_verify_keeps_what_is_foreign(filled):
    """A foreign file is reported, exits with 1, and survives the repair."""
    (filled.folder / "winner" / "thesis.tex").write_text("years of work")
    result = filled.run("verify", "--repair")
    assert result.code == 1
    assert "winner/thesis.tex" in result.out
    assert (filled.folder / "winner" / "thesis.tex").exists()


@pytest.mark.parametrize("command", ["gc", "stats", "verify"])
def test_without_a_cache(cli, command):
    """Where there is no cache yet, nothing is wrong and none is made."""
    assert cli.run(command).code == 0
    assert not cli.folder.exists()


@pytest.fixture
def tuned_elsewhere(store):
    """A winner's key, as another toolchain filed it, for the bucket of `SIGNATURE`."""
    from jitd.autotune.policy import Policy  # noqa: PLC0415
    from jitd.jit.op import OPS  # noqa: PLC0415
    from jitd.models import catalog  # noqa: PLC0415

    catalog.declare_ops()
    op = OPS["group_norm_silu"]
    problem = op.sign(op.bucket(op.parse(SIGNATURE).call)).text
    parts = {
        "op_version": op.version,
        "problem": problem,
        "device": "NVIDIA Test",
        "sm_count": 1,
        "memory_bytes": 2,
        "toolchain": "3.0.0+old",
        "policy": Policy().identity(),
    }
    meta = {"device": "NVIDIA Test", "target": "sm_90"}
    return store.put(Key.of("winner", op.name, **parts), {}, label=problem, meta=meta)


def test_why_without_a_card(cli, tuned_elsewhere):
    """It names the part of the key that differs, both its values, and what it cannot compare."""
    result = cli.run("why", SIGNATURE)
    assert result.code == 0, result.err
    assert "3.0.0+old" in result.out
    assert "Not compared: device, memory_bytes, sm_count" in result.out
    assert "op_version" not in result.out


def test_why_for_a_card(cli, tuned_elsewhere):
    """With the name of a card that something was tuned on, all parts are compared."""
    done = cli.run("why", SIGNATURE, "--device-name", "NVIDIA Test", "--json")
    (answer,) = json.loads(done.out)["answers"]
    assert (answer["device"], answer["ready"]) == ("NVIDIA Test", False)
    assert [one["part"] for one in answer["differences"]] == ["toolchain"]
    assert answer["not_compared"] == []
    assert answer["nearest"]["path"] == tuned_elsewhere.header.path


def test_why_refuses(cli, tuned_elsewhere):
    """A card that nobody knows and a signature of no op are refused, with those that there are."""
    unknown = cli.refused("why", SIGNATURE, "--device-name", "Voodoo 2", code=2)
    assert "NVIDIA Test" in unknown
    assert "no op" in cli.refused("why", "frobnicate[bf16](1)", code=2)


READY = "outside_scale[bf16](1000)"


@pytest.fixture
def tuned(card):
    """A machine with a card on which `READY` is tuned, compiled and checked."""
    assert card.run("warmup", "--import", "outside.ops", "--signature", READY).code == 0
    return card


def test_why_of_what_is_ready(tuned):
    """Once it is tuned, it is ready, and the config that won is named."""
    result = tuned.run("why", READY, "--import", "outside.ops", "--json")
    (answer,) = json.loads(result.out)["answers"]
    assert answer["ready"], answer
    assert "BLOCK=" in answer["text"]
    assert answer["differences"] == []


def test_why_looks_behind(tuned, tmp_path, monkeypatch):
    """What a read-only folder behind the cache has is served, and so it is ready."""
    behind = tuned.folder.rename(tmp_path / "behind")
    monkeypatch.setenv("JITD_CACHE_PATH", str(behind))
    result = tuned.run("why", READY, "--import", "outside.ops")
    assert result.code == 0, result.err
    assert "it is ready" in result.out


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("artifact", "is not compiled"), ("check", "have not passed the check")],
)
def test_why_of_half_of_it(tuned, kind, reason):
    """A winner whose binary or check is gone is named with what it lacks."""
    store = Store(tuned.folder)
    for header in [*store.headers(kind)]:
        store.remove(header)
    result = tuned.run("why", READY, "--import", "outside.ops")
    assert result.code == 0, result.err
    assert "the winner is" in result.out
    assert reason in result.out
