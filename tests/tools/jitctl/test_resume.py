"""`warmup --resume`: what was interrupted goes on, with the options that it had."""

import json
import shlex

import pytest

BF16 = ["--signature", "outside_scale[bf16](1000)"]
FP32 = ["--signature", "outside_scale[fp32](3000)"]
RESUME = ["warmup", "--resume", "--import", "outside.ops"]
SCALE = ["warmup", "--import", "outside.ops", *BF16, *FP32]


def tuned(result):
    assert result.code == 0, result.err
    rows = json.loads(result.out)["targets"][0]["rows"]
    return [row["signature"] for row in rows if row["status"] == "tuned"]


def notes(card):
    """How many requests wait to be resumed."""
    return sum(name.startswith("workload/resume/") for name in card.files())


@pytest.mark.parametrize("how", ["--ctrl-c", "kill -9"])
def test_goes_on_where_it_was_stopped(card, how):
    """After Ctrl-C and after kill -9 it says what it resumes, tunes the rest, and is then done."""
    if how == "kill -9":
        card.killed(*SCALE)
    else:
        assert card.run(*SCALE, happens=[how]).code == 130
    result = card.run(*RESUME, "--json")
    assert f"jitctl: resuming: {shlex.join(['jitctl', *SCALE])}" in result.lines
    assert tuned(result) == ["outside_scale[fp32](4096)"]
    assert json.loads(result.out)["resumed"] == shlex.join(["jitctl", *SCALE])
    assert notes(card) == 0
    assert "Nothing to resume" in card.run(*RESUME).out


def test_nothing_to_resume(card):
    """Where nothing was interrupted that is said, it is no failure, and no folder is made."""
    result = card.run(*RESUME)
    assert result.code == 0
    assert "Nothing to resume" in result.out
    assert json.loads(card.run(*RESUME, "--json").out)["resumed"] is None
    assert not card.folder.exists()


def test_what_leaves_no_note(card):
    """A dry run, a warmup that ends, one that a receipt answers and one that fails leave none."""
    card.run(*SCALE, "--dry-run")
    assert not card.folder.exists()
    assert card.run(*SCALE).code == 0
    assert notes(card) == 0
    answered = json.loads(card.run(*SCALE, "--json", happens=["--ctrl-c"]).out)
    assert (answered["targets"][0]["receipt"], notes(card)) == (True, 0)
    other = [*SCALE[:3], "--signature", "outside_scale[fp16](64)"]
    assert card.run(*other, happens=["--hopeless"]).code == 1
    assert notes(card) == 0


def test_the_same_command_ends_it_too(card):
    """The interrupted command itself, given again, leaves nothing to resume; another one does."""
    card.run(*SCALE, happens=["--ctrl-c"])
    assert card.run(*SCALE[:-2], "--jobs", "1").code == 0
    assert notes(card) == 1
    assert card.run(*SCALE, "--jobs", "1").code == 0
    assert notes(card) == 0


def test_the_latest_goes_first(card):
    """Of two that were interrupted the later one is resumed, then the other."""
    card.run(*SCALE, happens=["--ctrl-c"])
    other = ["--signature", "outside_scale[fp16](64)", "--signature", "outside_scale[fp16](600)"]
    card.run("warmup", "--import", "outside.ops", *other, happens=["--ctrl-c"])
    assert "fp16" in card.run(*RESUME).lines[0]
    assert "fp32" in card.run(*RESUME).lines[0]
    assert notes(card) == 0


def test_options_come_back(card, tmp_path):
    """Workload, device, --again and the rest are those of the interrupted warmup."""
    workload = tmp_path / "workload.json"
    counts = {"outside_scale[bf16](1000)": 3, "outside_scale[fp32](3000)": 1}
    workload.write_text(json.dumps({"format": "jitd-workload-1", "counts": counts}))
    asked = ["warmup", "--import", "outside.ops", "--workload", str(workload)]
    assert card.run(*asked).code == 0
    card.run(*asked, "--again", "all", "--jobs", "1", "--device", "0", happens=["--ctrl-c"])
    result = card.run(*RESUME, "--json")
    resumed = ["jitctl", *asked, "--again", "all", "--jobs", "1"]
    assert json.loads(result.out)["resumed"] == shlex.join(resumed)
    assert json.loads(result.out)["targets"][0]["rows"][0]["calls"] == 3


def test_again_is_not_done_twice(card):
    """What --again had tuned anew before it was interrupted is not tuned anew once more."""
    assert card.run(*SCALE).code == 0
    card.run(*SCALE, "--again", "all", happens=["--ctrl-c"])
    assert tuned(card.run(*RESUME, "--json")) == ["outside_scale[fp32](4096)"]
    card.run(*SCALE, "--again", "all", happens=["--ctrl-c"])
    assert len(tuned(card.run(*SCALE, "--again", "all", "--json"))) == 2


@pytest.mark.compiler
def test_a_model_comes_back(card, store):
    """Sizes, dtype, variant and --i2v of a model are noted, and asked for again."""
    options = ["--size", "512x768x121", "--dtype", "fp16"]
    options += ["--variant", "2.0", "--i2v", "--arch", "sm_80"]
    process = card.start("warmup", "--model", "ltx2", *options, "--jobs", "1", "--space")
    for line in process.stderr:
        if "compiled" in line:
            break
    process.kill()
    process.communicate(timeout=60)
    result = card.run(*RESUME, "--dry-run")
    command = shlex.join(["jitctl", "warmup", "--model", "ltx2", *options])
    assert f"jitctl: resuming: {command} --space --jobs 1" in result.lines
    assert "binaries missing" in result.out
    assert notes(card) == 1


@pytest.mark.parametrize(
    "options",
    [["--model", "ltx2"], BF16, ["--workload", "w.json"], ["--again", "all"], ["--dtype", "bf16"]],
    ids=lambda options: options[0],
)
def test_options_that_are_not_its_own(cli, options):
    """What to warm and how was said by the interrupted warmup: to say it anew is wrong usage."""
    message = cli.refused("warmup", "--resume", *options, code=2)
    assert options[0] in message and "--resume" in message


def test_what_cannot_be_asked_for_again(card, tmp_path):
    """Where the workload's file is gone that is said, and what came before it is resumed."""
    workload = tmp_path / "workload.json"
    counts = {"outside_scale[bf16](10)": 3, "outside_scale[fp32](30)": 1}
    workload.write_text(json.dumps({"format": "jitd-workload-1", "counts": counts}))
    asked = ["warmup", "--import", "outside.ops", "--workload", str(workload)]
    card.run(*SCALE, happens=["--ctrl-c"])
    card.run(*asked, happens=["--ctrl-c"])
    workload.unlink()
    result = card.run(*RESUME)
    assert result.code == 0
    assert f"cannot resume `{shlex.join(['jitctl', *asked])}`" in result.lines[0]
    assert f"resuming: {shlex.join(['jitctl', *SCALE])}" in result.lines[1]
    assert str(workload) in card.refused(*RESUME, code=1)


def test_a_note_of_another_version(card, store):
    """A note without an option that there is now, as an older jitd wrote it, is passed over."""
    card.run(*SCALE, happens=["--ctrl-c"])
    (header,) = store.headers("workload", "resume")
    body = store.record_for(header).body
    store.put(header.key, {k: v for k, v in body.items() if k != "i2v"}, label=header.label)
    message = card.refused(*RESUME, code=1)
    assert "another version of jitd noted it: i2v?" in message


def test_list_and_clear(card):
    """`list` says what waits, as no winner; clear-cache takes it with what it belongs to."""
    card.run(*SCALE, happens=["--ctrl-c"])
    lines = card.run("list").out.splitlines()
    (line,) = [line for line in lines if line.startswith("Not finished")]
    assert shlex.join(["jitctl", *SCALE]) in line
    assert line.endswith("To go on: jitctl warmup --resume --import outside.ops")
    document = json.loads(card.run("list", "--json").out)
    assert [record["kind"] for record in document["records"]] == ["winner"]
    assert document["summary"]["kinds"]["workload"] == 1
    assert card.run("clear-cache", "--arch", "sm_80", "--yes").code == 0
    assert notes(card) == 1
    assert card.run("clear-cache", "--keep-winners", "--yes").code == 0
    assert notes(card) == 0
    assert "Nothing to resume" in card.run(*RESUME).out


def test_no_note_has_a_module_imported(card):
    """A module that only the note of a warmup names is not imported: the user has to say it."""
    card.run(*SCALE, happens=["--ctrl-c"])
    message = card.refused("warmup", "--resume", code=2)
    assert message.endswith(f"Run: {shlex.join(['jitctl', *RESUME])}\n")
    assert notes(card) == 1
    assert card.run(*RESUME).code == 0
