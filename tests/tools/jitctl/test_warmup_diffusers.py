"""`warmup --diffusers` and `--workload`: the same table, receipt and resume as of a model."""

import json

import pytest
from jitd.jit.record import HEADER, Workload, as_line
from jitd.tools.examples import tiny


@pytest.fixture
def folder(tmp_path):
    """The config files of LTX-2's upsampler, which asks for a few signatures only."""
    pytest.importorskip("diffusers")
    pipe, _ = tiny.ltx2()
    return tiny.save_configs(pipe, tmp_path / "ltx2", tiny.ltx2_upsampler(pipe))


@pytest.fixture
def asked(folder):
    return ["warmup", "--diffusers", str(folder / "latent_upsampler"), "--size", "128x192x9"]


@pytest.mark.diffusers
def test_tuned_once(card, asked, folder):
    """What the configs ask for is tuned; the second warmup answers from its receipt; a changed
    config asks anew."""
    first = json.loads(card.run(*asked, "--json").out)
    rows = first["targets"][0]["rows"]
    assert first["name"] == "diffusers-ltx2"
    assert {row["status"] for row in rows} == {"tuned"}
    assert any(row["signature"].startswith("group_norm_add_silu[bf16](1x64") for row in rows)
    second = card.run(*asked)
    assert "nothing to do" in second.out
    file = folder / "latent_upsampler" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "num_blocks_per_stage": 1}))
    third = json.loads(card.run(*asked, "--json").out)["targets"][0]
    assert not third["receipt"]
    assert {row["status"] for row in third["rows"]} == {"known"}


@pytest.mark.diffusers
def test_resumed(card, asked):
    """Ctrl-C and --resume: the folder and its options come back."""
    asked = [*asked[:-1], "128x192", "--frames", "9", "--vae-dtype", "fp32"]
    assert card.run(*asked, happens=["--ctrl-c"]).code == 130
    resumed = json.loads(card.run("warmup", "--resume", "--json").out)
    assert resumed["resumed"].startswith("jitctl warmup --diffusers /")
    assert "--frames 9 --vae-dtype fp32 --size 128x192x9" in resumed["resumed"]
    assert "nothing to do" in card.run(*asked).out


@pytest.mark.diffusers
def test_a_folder_that_is_gone_is_not_resumed(card, asked, folder):
    """A note whose folder is no more is passed over, and says so."""
    assert card.run(*asked, happens=["--ctrl-c"]).code == 130
    folder.rename(folder.with_name("elsewhere"))
    refused = card.run("warmup", "--resume")
    assert refused.code == 1
    assert "no such folder" in refused.err


@pytest.mark.diffusers
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--variant", "hq"], "there are all, guided, distilled"),
        (["--hq"], "has no variant of high quality"),
        (["--model", "ltx2"], "two models"),
        (["--size", "128"], "not readable"),
        (["--size", "100x100"], "--size 100x100x121: ValueError: "),
    ],
)
def test_options_that_do_not_fit(card, asked, options, said):
    """Each is wrong usage that says what is allowed."""
    assert said in card.refused(*asked, *options, code=2)


@pytest.mark.parametrize(
    "options", [["--frames", "9"], ["--prompt-tokens", "8"], ["--vae-dtype", "fp32"]]
)
def test_options_without_a_folder(card, options):
    """Options of --diffusers alone are wrong usage."""
    assert "are options of --diffusers" in card.refused("warmup", *options, code=2)


def test_a_folder_of_nothing(card, tmp_path):
    """A folder without config files is wrong usage, told without torch."""
    assert "config.json" in card.refused("warmup", "--diffusers", str(tmp_path), code=2)


def test_a_file_for_a_folder_and_back(card, tmp_path):
    """A path that is there, but of the other kind, is told to be that."""
    (tmp_path / "file").touch()
    said = card.refused("warmup", "--diffusers", str(tmp_path / "file"), code=2)
    assert "file: a file, not a folder. Give the folder" in said
    said = card.refused("warmup", "--workload", str(tmp_path), code=2)
    assert "a folder; give a file in it" in said


def test_an_empty_workload_is_said(card, tmp_path):
    """A file of no signatures warms nothing, which is no failure, and says so."""
    Workload().save(tmp_path / "empty")
    done = card.run("warmup", "--workload", str(tmp_path / "empty"))
    assert done.code == 0
    assert "empty names no signature: nothing is warmed for it." in done.err


SEEN = "outside_scale[bf16](1000)"
MORE = "outside_scale[fp32](3000)"


def test_what_servers_recorded(card, tmp_path):
    """Files of several processes, recorded by JITD_RECORD or saved, are warmed as one."""
    for name, texts in (("a", [SEEN]), ("b", [SEEN, MORE])):
        (tmp_path / name).write_text(HEADER + "".join(map(as_line, texts)))
    saved = Workload()
    saved.add(MORE, 7)
    saved.save(tmp_path / "c")
    files = [word for name in "abc" for word in ("--workload", str(tmp_path / name))]
    asked = ["warmup", "--import", "outside.ops", *files]
    rows = json.loads(card.run(*asked, "--json").out)["targets"][0]["rows"]
    assert [row["calls"] for row in rows] == [2, 8]
    assert {row["status"] for row in rows} == {"tuned"}
    assert card.run(*asked, happens=["--ctrl-c"]).code == 0  # the receipt answers


def test_a_workload_of_another_version(card, tmp_path):
    """Signatures that this version cannot read are counted; the first is shown with the file."""
    (tmp_path / "seen").write_text(HEADER + as_line(SEEN) + as_line("gone[bf16](8)"))
    said = card.refused(
        "warmup", "--import", "outside.ops", "--workload", str(tmp_path / "seen"), code=2
    )
    assert "of 2 signatures 1 cannot be read" in said
    assert "no op 'gone'" in said
    (tmp_path / "seen").write_text("{}")
    assert "it names no format" in card.refused(
        "warmup", "--workload", str(tmp_path / "seen"), code=1
    )
