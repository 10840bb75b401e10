"""`env`, `doctor` and `--version`: what jitd finds around it."""

import json
import os
from importlib import metadata

import pytest
from jitd.jit.settings import Settings


def test_env_says_where_values_come_from(cli):
    """Every setting is listed with its value and whether it is set or a default."""
    document = json.loads(cli.run("env", "--json", env={"JITD_MODE": "strict"}).out)
    settings = {row["name"]: row for row in document["settings"]}
    assert len(settings) == len(Settings.__dataclass_fields__)
    assert settings["JITD_MODE"]["value"] == "strict"
    assert settings["JITD_MODE"]["origin"] == "environment"
    assert settings["JITD_COMPILE_TIMEOUT_S"]["origin"] == "default"
    assert settings["JITD_CACHE_DIR"]["value"] == document["cache_dir"] == str(cli.folder)
    assert "JITD_MODE" in cli.run("env").out


@pytest.mark.parametrize("command", ["env", "list", "doctor", "clear-cache"])
def test_wrong_setting(cli, command):
    """A setting that cannot be is wrong usage for every command; the line names the variable."""
    message = cli.refused(command, code=2, env={"JITD_JOBS": "many"})
    assert "JITD_JOBS='many'" in message


def test_version(cli):
    """--version prints the versions of the three packages that decide."""
    lines = cli.run("--version").out.splitlines()
    assert [line.split()[0] for line in lines] == ["jitd", "torch", "triton"]
    assert f"torch {metadata.version('torch')}" in lines


def test_doctor_is_content(cli, store):
    """With a good folder and packages there is no problem, and no GPU is a warning at most."""
    result = cli.run("doctor", "--json")
    document = json.loads(result.out)
    checks = {check["name"]: check for check in document["checks"]}
    assert (result.code, document["problems"]) == (0, 0)
    assert checks["cache folder"]["status"] == "ok"
    assert "writable" in checks["cache folder"]["text"]
    assert {"free space", "file system", "torch", "triton", "CUDA", "C compiler"} <= set(checks)
    assert cli.files() == set()


def test_doctor_without_triton_or_compiler(cli, store, tmp_path):
    """An empty PATH is no problem: a warm cache needs no C compiler."""
    result = cli.run("doctor", env={"PATH": str(tmp_path)})
    assert result.code == 0
    assert "not needed (none)" in result.out


def test_doctor_finds_an_open_folder(cli, store):
    """A cache that others may write is a problem, with the command that mends it."""
    cli.folder.chmod(0o777)
    result = cli.run("doctor")
    assert result.code == 1
    assert "chmod go-w" in result.out


def test_doctor_makes_no_folder(cli):
    """Asking is free: a cache that is not there yet is not made."""
    assert cli.run("doctor").code == 0
    assert not cli.folder.exists()


def test_doctor_on_a_full_disk(cli, tiny_disk):
    """Too little room is a problem, and a folder that takes no file is said to be read-only."""
    cli.folder = tiny_disk("size=64k")
    result = cli.run("doctor")
    assert result.code == 1
    assert "clear-cache" in result.out
    assert os.listdir(cli.folder) == []  # noqa: PTH208


def test_folders_behind_the_cache(cli, put_winner, tmp_path):
    """`env`, `doctor`, `list` and `show` know the read-only folders; `clear-cache` leaves them."""
    put_winner("scale", "scale[bf16](64)")
    baked, missing = cli.folder, tmp_path / "missing"
    cli.folder = tmp_path / "own"
    env = {"JITD_CACHE_PATH": f"{baked}:{missing}"}
    document = json.loads(cli.run("env", "--json", env=env).out)
    assert document["cache_path"] == [str(baked), str(missing)]
    assert str(baked) in cli.run("env", env=env).out

    doctor = cli.run("doctor", "--json", env=env)
    checks = [c for c in json.loads(doctor.out)["checks"] if c["name"] == "read-only folder"]
    assert [check["status"] for check in checks] == ["ok", "warning"]
    assert (doctor.code, "left out" in checks[1]["remedy"]) == (0, True)

    [record] = json.loads(cli.run("list", "--json", env=env).out)["records"]
    assert (record["label"], record["tier"]) == ("scale[bf16](64)", 1)
    listed = cli.run("list", env=env)
    assert f"{cli.folder} and 1 folder behind it" in listed.out
    assert str(missing) in listed.err
    assert "BLOCK=64" in cli.run("show", "scale[bf16](64)", env=env).out

    cleared = json.loads(cli.run("clear-cache", "--yes", "--json", env=env).out)
    assert cleared["files"] == 0
    assert json.loads(cli.run("list", "--json", env=env).out)["records"] == [record]
