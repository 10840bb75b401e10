"""Bad input ends in one clear line, exit code 1 or 2, and nothing half-written."""

import json
import os
import resource
import subprocess

import pytest

SCALE = ["warmup", "--import", "outside.ops", "--signature", "outside_scale[bf16](1000)"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["warmup"], "--model"),
        (["warmup", "--model", "gpt2"], "unknown model 'gpt2'; there are ltx2"),
        (["warmup", "--model", "ltx2", "--size", "500x768x121"], "Nearest: 512x768x121"),
        (["warmup", "--model", "ltx2", "--size", "512x768x120"], "8*n + 1"),
        (["warmup", "--model", "ltx2", "--size", "large"], "HEIGHTxWIDTHxFRAMES"),
        (["warmup", "--model", "helios", "--size", "380x640"], "Nearest: 384x640"),
        (["warmup", "--model", "zimage", "--size", "1000"], "Nearest: 992x992"),
        (["warmup", "--model", "zimage", "--i2v"], "zimage makes no video of an image"),
        (["warmup", "--model", "ltx2", "--arch", "sm_12"], "unknown target 'sm_12'"),
        (["warmup", "--model", "ltx2", "--variant", "1.0"], "2.3-distilled"),
        (["warmup", "--signature", "outside_scale[bf16](10)", "--i2v"], "--model"),
        (["warmup", "--signature", "outside_scale[bf16](10)", "--hq"], "--model"),
        (["warmup", "--model", "ltx2", "--hq", "--variant", "2.0"], "--hq is --variant 2.3-hq"),
        (["warmup", "--model", "ltx2", "--dtype", "int4"], "bf16"),
        (["warmup", "--model", "ltx2", "--jobs", "0"], "--jobs"),
        (["warmup", "--model", "ltx2", "--mode", "tune", "--arch", "sm_90"], "--arch"),
        (["warmup", "--model", "ltx2", "--again", "all", "--arch", "sm_90"], "--arch"),
        (["warmup", "--model", "ltx2", "--again", "all", "--mode", "compile"], "--mode compile"),
        (["warmup", "--model", "ltx2", "--again", "quiet"], "noisy"),
        (["warmup", "--size", "512x768x121"], "--model"),
        (["warmup", "--signature", "group_norm[bf16](1)"], "--import"),
        (["warmup", "--import", "no.such", "--signature", "x[bf16](1)"], "No module named 'no'"),
        ([*SCALE[:-1], "outside_scale[bf16](1x?)"], "1x?"),
        (["warmup", "--workload", "/no/such/file"], "/no/such/file"),
        (["warmup", "--modle", "ltx2"], "--modle"),
        (["warm"], "warm"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage(cli, arguments, words):
    """What cannot be meant is refused before anything is built, and the line says what can."""
    assert words in cli.refused(*arguments, code=2)
    assert not cli.folder.exists() or cli.files() == set()


@pytest.mark.parametrize("options", [["--mode", "tune"], ["--again", "all"]], ids=" ".join)
def test_tune_without_a_gpu(cli, options):
    """To tune, or to tune again, fails without a GPU, with the reason and the way out."""
    message = cli.refused("warmup", "--model", "ltx2", *options, code=1)
    assert "--mode compile" in message


def test_damaged_workload(cli, tmp_path):
    """A file that is no workload is refused by name."""
    path = tmp_path / "workload.json"
    path.write_text("{}")
    assert str(path) in cli.refused("warmup", "--workload", str(path), code=1)


def test_folder_of_another_user(cli, store):
    """A cache that belongs to somebody else is refused by every command that opens it."""
    if os.geteuid() != 0:
        pytest.skip("needs root: gives a folder to another user")
    os.chown(cli.folder, 12_345, 12_345)
    for arguments in (SCALE, ["list"], ["clear-cache", "--yes"]):
        assert "owned by uid 12345" in cli.refused(*arguments, code=1)
    assert cli.files() == set()


def test_folder_that_cannot_be_made(cli, tmp_path):
    """A cache folder below a file is refused with the system's reason."""
    (tmp_path / "file").write_text("")
    cli.folder = tmp_path / "file" / "cache"
    assert "Not a directory" in cli.refused(*SCALE, code=1)


def test_folder_without_permission(cli, store):
    """A cache that this user may not write is refused before anything is compiled."""
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere; see the read-only file system")
    cli.folder.chmod(0o500)
    assert "cannot be written" in cli.refused(*SCALE, code=1)


def test_read_only_file_system(cli, tiny_disk):
    """A cache on a read-only file system still lists, but is refused for warming."""
    cli.folder = tiny_disk("size=64k")
    (cli.folder / ".jitd-cache").write_text("jitd cache, layout 1\n")
    subprocess.run(["mount", "-o", "remount,ro", str(cli.folder)], check=True)
    assert "Read-only file system" in cli.refused(*SCALE, code=1)
    assert cli.run("list").code == 0


def test_no_room_to_begin_with(cli, store):
    """Where no file can be written, warmup fails at once, before it imports torch."""

    def tiny_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))

    message = cli.refused(*SCALE, code=1, preexec_fn=tiny_files)
    assert "cannot be written" in message
    assert "clear-cache" in message
    assert cli.files() == set()


@pytest.mark.compiler
def test_disk_that_fills_up(cli, tiny_disk):
    """A disk that is full after some binaries ends the warmup; what is there is whole."""
    cli.folder = tiny_disk("size=28k")
    result = cli.run(*SCALE, "--space", "--jobs", "1")
    assert result.code == 1
    assert "No space left" in result.lines[-1] or "ENOSPC" in result.lines[-1]
    assert "Traceback" not in result.err
    kept = json.loads(cli.run("list", "--json").out)["summary"]["kinds"]
    assert 1 <= kept["artifact"] < 6
    assert len(cli.files()) == kept["artifact"] + kept["workload"]
