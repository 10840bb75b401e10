"""`warmup` without a GPU: compiles with real Triton, once."""

import json
import shutil
import signal

import pytest

pytestmark = pytest.mark.compiler

SCALE = ["warmup", "--import", "outside.ops", "--signature", "outside_scale[bf16](1000)"]
HEAVY = {"torch", "triton"}


def document(result):
    assert result.code == 0, result.err
    return json.loads(result.out)


def test_second_warmup_needs_no_torch(cli):
    """The first warmup compiles and says what is next; the second answers from its receipt."""
    first = cli.run(*SCALE)
    assert first.code == 0, first.err
    assert "outside_scale[bf16](1024)" in first.out
    assert "[1/1] compiled scale_kernel for sm_90" in first.err
    assert "1 signature is left to tune and check" in first.out
    before = cli.files()

    second = cli.run(*SCALE, imports=True)
    assert second.code == 0
    assert "nothing to do" in second.out
    assert first.out.splitlines()[1:] == second.out.splitlines()[1:]
    assert not HEAVY & second.imported
    assert cli.files() == before


def test_for_programs(cli):
    """--json gives one document: rows, architectures, cache, toolchain, receipt, counters."""
    arguments = [*SCALE, "--arch", "sm_90", "--arch", "sm_80", "--json"]
    first, second = document(cli.run(*arguments)), document(cli.run(*arguments))
    assert [target["arch"] for target in first["targets"]] == ["sm_90", "sm_80"]
    assert [target["receipt"] for target in first["targets"]] == [False, False]
    assert [target["receipt"] for target in second["targets"]] == [True, True]
    assert first["targets"][0]["rows"] == second["targets"][0]["rows"]
    assert first["targets"][0]["rows"][0]["status"] == "compiled"
    assert (first["stats"], second["stats"]) == ({"compiles": 2}, {})
    assert first["cache_dir"] == str(cli.folder)


def test_dry_run(cli):
    """A dry run says what is missing, compiles nothing and makes no folder."""
    result = cli.run(*SCALE, "--space", "--dry-run")
    assert result.code == 0
    assert "6 of 6 binaries missing" in result.out
    assert not cli.folder.exists()


def test_lost_and_changed(cli, tmp_path):
    """A receipt is void when a binary is gone, or when the package of the op has changed."""
    shutil.copytree(f"{cli.path[0]}/outside", tmp_path / "own" / "outside")
    cli.path = [str(tmp_path / "own")]
    document(cli.run(*SCALE, "--json"))
    assert document(cli.run(*SCALE, "--dry-run", "--json"))["targets"][0]["receipt"]

    (artifact,) = [name for name in cli.files() if name.startswith("artifact")]
    (cli.folder / artifact).unlink()
    assert document(cli.run(*SCALE, "--json"))["stats"] == {"compiles": 1}

    with (tmp_path / "own" / "outside" / "ops.py").open("a") as file:
        file.write("# changed\n")
    assert not document(cli.run(*SCALE, "--dry-run", "--json"))["targets"][0]["receipt"]


def test_interrupted(cli):
    """Ctrl-C after the first binary keeps what is done and says so; the next run does the rest."""
    arguments = [*SCALE, "--space", "--jobs", "1"]
    process = cli.start(*arguments)
    first = process.stderr.readline()
    assert first.startswith("jitctl: [1/6] compiled"), first
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted: " in rest
    assert "kept in" in rest
    assert "Traceback" not in rest
    assert "jitctl warmup --resume" in rest
    kept = sum(name.startswith("artifact") for name in cli.files())
    assert kept >= 1
    assert len(cli.files()) == kept + 1  # the note for --resume
    resumed = cli.run("warmup", "--resume", "--import", "outside.ops", "--json")
    assert document(resumed)["stats"] == {"compiles": 6 - kept}
    assert "--space --jobs 1" in resumed.lines[0]


def test_failing_kernel(cli, tmp_path):
    """A kernel that does not compile is a failed row and exit code 1; no receipt hides it."""
    shutil.copytree(f"{cli.path[0]}/outside", tmp_path / "own" / "outside")
    cli.path = [str(tmp_path / "own")]
    kernels = tmp_path / "own" / "outside" / "kernels.py"
    kernels.write_text(kernels.read_text().replace("tl.program_id(0)", "tl.no_such_thing(0)"))
    result = cli.run(*SCALE)
    assert result.code == 1
    assert "failed" in result.out
    assert "no_such_thing" in result.err
    assert "Traceback" not in result.err
    kinds = {name.split("/")[0] for name in cli.files()}
    assert not kinds & {"artifact", "receipt", "workload"}
