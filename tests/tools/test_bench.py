"""The benchmarks without a GPU: what they would measure, print and store, never how fast it is."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from jitd.cache.errors import CacheFolderError
from jitd.jit import device
from jitd.jit.declare import check_launch
from jitd.jit.device import NoDevice, stand_in
from jitd.tools.bench import (
    cli,
    contest,
    daemon,
    environment,
    goals,
    group_norm,
    host,
    start,
)
from jitd.tools.bench.calls import Got, Refused, call_of
from jitd.tools.bench.goals import GROUP_NORM, Limit, Target, judge
from jitd.tools.bench.ops import affine_silu
from jitd.tools.bench.peers import BadPeer, resolve_peer, resolve_peers
from jitd.tools.bench.stopwatch import Times, host_us
from typer.testing import CliRunner

COMMANDS = (
    *(
        "group_norm",
        "tokens",
        "block",
        "patch",
        "denoise",
        "errors",
        "host",
        "start",
        "tune",
        "cache",
    ),
    *("daemon", "serving"),
)
WITHOUT_A_GPU = {"cache", "daemon"}
TINY = Target((1, 64, 2, 3), (Limit(0.6, "best peer"), Limit(1.5, "floor", "must")))
RUNNER = CliRunner()


class FakeStopwatch:
    """Every contender takes what the test says; a negative time is a failure."""

    def __init__(self, **us: float) -> None:
        self.us = us

    def cold(self, runs):
        for run in runs.values():
            run()
        known = {name: self.us.get(name, 50.0) for name in runs}
        return Times(
            {name: us for name, us in known.items() if us >= 0},
            {name: "no clock" for name, us in known.items() if us < 0},
        )

    graph = cold


@pytest.fixture
def no_gpu(monkeypatch):
    """A machine whose driver shows no card, also where there is one."""

    def refuse():
        raise NoDevice("no NVIDIA driver (libcuda.so.1) on this machine")

    monkeypatch.setattr(device, "driver", refuse)
    device.devices.cache_clear()
    yield
    device.devices.cache_clear()


@pytest.fixture
def peer_module(tmp_path, monkeypatch):
    """A module `some_peers` that can be imported by name."""
    (tmp_path / "some_peers.py").write_text(
        "import torch.nn.functional as F\n"
        "def norm(x, weight, bias, groups, eps):\n"
        "    return F.silu(F.group_norm(x, groups, weight, bias, eps))\n"
        "def wrong(x, weight, bias, groups, eps):\n"
        "    return x\n"
        "not_a_function = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "some_peers"
    sys.modules.pop("some_peers", None)


def on_a_card(monkeypatch, got, **us):
    """Pretend that there is a card: what was tuned, and what a clock says of each contender."""
    monkeypatch.setattr(contest, "gpu", lambda: stand_in("sm_90"))
    monkeypatch.setattr(contest, "copy_bandwidth", lambda device: 3e12)
    monkeypatch.setattr(contest, "get_all", lambda cases: got)
    monkeypatch.setattr(contest, "CudaStopwatch", lambda **kwargs: FakeStopwatch(**us))
    monkeypatch.setattr(torch.cuda, "device", lambda index: nullcontext())


def measured(stopwatch, **contenders):
    reference = group_norm.group_norm_silu.op.reference
    (case,) = group_norm.cases_of([TINY], {}, dtype="fp32", add=False, device="cpu")
    return contest.measure(
        replace(case, limits=TINY.limits),
        case.make(),
        {"jitd": reference, "eager": reference} | contenders,
        stopwatch,
        bandwidth=1e9,
        got=Got(0.5, 1, 7, "split(CH=8)", 1),
    )


# -- goals ------------------------------------------------------------------------------------


def test_every_shape_of_the_goals_is_measured():
    """The table holds the eight shapes with 512 channels and the four of the released upsampler."""
    spatial = [target.shape[2:] for target in GROUP_NORM if target.shape[:2] == (1, 512)]
    assert spatial == [
        (16, 8, 12), (16, 16, 24), (16, 32, 48), (16, 17, 30), (16, 34, 60), (8, 45, 80),
        (16, 90, 160), (16, 180, 320),
    ]  # fmt: skip
    wide = [target.shape[2:] for target in GROUP_NORM if target.shape[:2] == (1, 1024)]
    assert wide == [(16, 16, 24), (16, 32, 48), (16, 17, 30), (16, 34, 60)]
    assert all(target.limits for target in GROUP_NORM)
    assert len({target.name for target in GROUP_NORM}) == len(GROUP_NORM)


def test_the_large_shapes_have_a_must_and_a_goal():
    """Both 720p shapes must stay within 1.55 times the floor and aim at 1.3 times."""
    for target in GROUP_NORM:
        if target.shape[-1] in (160, 320):
            assert list(map(str, target.limits)) == ["must <= 1.55x floor", "<= 1.3x floor"]


def test_the_1024_channel_shapes_have_the_goals_of_their_512_channel_twins():
    """More channels do not soften a goal."""
    twins = {target.shape[2:]: target.limits for target in GROUP_NORM if target.shape[1] == 512}
    for target in GROUP_NORM:
        assert target.limits == twins[target.shape[2:]]


def test_a_limit_is_held_against_the_fastest_of_the_others():
    """30 us is 0.75 of the best peer's 40, and three times a floor of 10."""
    verdicts = judge(TINY.limits, 30.0, 10.0, {"eager": 90.0, "compile": 60.0, "peer": 40.0})
    assert [(v.ratio, v.met) for v in verdicts] == [(0.75, False), (3.0, False)]
    assert str(verdicts[0]) == "goal MISSED at 0.75"
    (met,) = judge([Limit(0.6, "best peer")], 24.0, 10.0, {"compile": 40.0})
    assert met.met is True


def test_without_torch_compile_no_best_peer_is_claimed():
    """Being faster than eager alone does not reach a goal."""
    verdict, _ = judge(TINY.limits, 1.0, 1.0, {"eager": 90.0})
    assert verdict.ratio is None
    assert verdict.met is None
    assert str(verdict) == "goal ?"


# -- group_norm -------------------------------------------------------------------------------


def test_a_row_says_what_was_measured(peer_module):
    """Bytes are every tensor once; all ratios follow from them and from the times."""
    peers = resolve_peers([f"{peer_module}:norm"])
    row = measured(FakeStopwatch(jitd=20.0, eager=80.0, some_peers=40.0, copy=16.0), **peers)
    stored = json.loads(json.dumps(row.json()))
    assert stored["bytes"] == 4 * (2 * 64 * 6 + 2 * 64)
    assert stored["floor_us"] == pytest.approx(stored["bytes"] / 1e3)
    assert stored["speedup"] == {"eager": 4.0, "some_peers": 2.0}
    assert stored["cold_us"] == {"jitd": 20.0, "eager": 80.0, "some_peers": 40.0, "copy": 16.0}
    assert stored["graph_us"] == stored["cold_us"]
    assert stored["x_floor"] == pytest.approx(20.0 / stored["floor_us"])
    assert stored["gb_per_s"] == pytest.approx(stored["bytes"] / 20.0 / 1e3)
    assert [limit["word"] for limit in stored["limits"]] == ["goal", "must"]
    assert (stored["config"], stored["launches"], stored["get_s"]) == ("split(CH=8)", 1, 0.5)
    assert stored["problems"] == {}
    assert (stored["name"], stored["shape"], stored["differing"]) == ("1x64x2x3", [1, 64, 2, 3], 0)
    names = [column.title for column in contest.columns(["eager", "some_peers"])]
    cells = dict(zip(names, row.cells(["eager", "some_peers"]), strict=True))
    assert (cells["x copy"], cells["x over eager"]) == ("1.25", "4.00")


def test_a_wrong_peer_is_not_timed(peer_module):
    """A contender that answers something else has a reason in place of a time."""
    peers = resolve_peers([f"{peer_module}:wrong"])
    row = measured(FakeStopwatch(), **peers)
    assert "some_peers" not in row.cold_us
    assert "is wrong at" in row.problems["some_peers"]


def test_a_wrong_kernel_of_our_own_fails_the_row():
    """jitd's answer is held to the reference before it is timed."""
    with pytest.raises(Refused, match="jitd is wrong at"):
        measured(FakeStopwatch(), jitd=lambda x, *rest: torch.full_like(x, float("nan")))


def test_a_contender_that_cannot_be_timed_leaves_the_others():
    """Its cell is empty and its reason is stored."""
    row = measured(FakeStopwatch(eager=-1.0))
    assert row.problems == {"eager": "no clock", "eager (graph)": "no clock"}
    assert row.cells(["eager"])[7] == "-"


def test_a_row_that_fails_does_not_cost_the_others(monkeypatch, tmp_path, capsys):
    """It is printed with its reason; the report has all rows, and the run counts as failed."""
    good, bad = TINY, Target((1, 32, 5), ())
    got = [Refused("out of luck"), Got(0.1, 0, 0, "loop()", 1)]
    reference = group_norm.group_norm_silu.op.reference
    made = group_norm.cases_of([bad, good], {"again": reference}, dtype="bf16", add=False,
                               device="cpu")  # fmt: skip
    monkeypatch.setattr(group_norm, "cases_of", lambda *args, **kwargs: made)
    on_a_card(monkeypatch, got, jitd=5.0)
    report_path = tmp_path / "report.json"
    assert not group_norm.run(
        dtype="bf16", add=False, peers={"again": reference}, with_compile=False, quick=True,
        json=report_path,
    )  # fmt: skip
    report = json.loads(report_path.read_text())
    assert report["rows"][0] == {
        "name": "1x32x5", "shape": [1, 32, 5], "where": "", "failed": "Refused: out of luck",
    }  # fmt: skip
    assert report["rows"][1]["speedup"] == {"eager": 10.0, "again": 10.0}
    assert report["environment"]["copy_bytes_per_s"] == 3e12
    assert {"gpu", "driver", "sm_count", "torch", "triton", "cuda_bindings", "python", "jitd",
            "date"} <= set(report["environment"])  # fmt: skip
    printed = capsys.readouterr().out
    assert "1x32x5             failed: Refused: out of luck" in printed
    assert "1x64x2x3" in printed


# -- host and start ---------------------------------------------------------------------------


def test_host_time_of_what_raises_is_a_problem_not_an_end():
    """The others are measured all the same."""
    times = host_us(
        {"fine": lambda: None, "broken": lambda: 1 / 0},
        batches=2,
        calls=3,
        synchronize=lambda: None,
    )
    assert set(times.us) == {"fine"}
    assert times.problems == {"broken": "ZeroDivisionError: division by zero"}


def test_host_rows_are_held_against_triton():
    """An op with one launch has to reach both goals; other rows have none."""
    contenders = host.Contenders()
    contenders.runs = {"op": print, host.YARDSTICK: print, "slow op": print}
    contenders.judged = {"op", "slow op"}
    contenders.add("missing", lambda: 1 / 0)
    rows = host.rows_of(contenders, Times({"op": 7.0, host.YARDSTICK: 14.0, "slow op": 9.0}, {}))
    assert [(row.name, row.met) for row in rows] == [
        ("op", True), (host.YARDSTICK, None), ("slow op", False), ("missing", None),
    ]  # fmt: skip
    assert rows[-1].json()["problem"] == "ZeroDivisionError: division by zero"


def test_start_rows_are_medians_of_what_the_processes_say():
    """Several signatures of one process count as their mean."""
    answers = [
        {"jitd_first_ms": first, "jitd_norm_ms": [1.0, further]}
        for first, further in ((60.0, 3.0), (90.0, 5.0), (70.0, 7.0))
    ]
    first, norm = start.rows_of(answers)
    assert (first.median, first.met, first.goal) == (70.0, True, goals.START_FIRST_MS)
    assert (norm.ms, norm.median, norm.met) == ([2.0, 3.0, 4.0], 3.0, True)


def test_start_reports_a_process_that_fails(monkeypatch, tmp_path, capsys):
    """One line says why; what was measured before it is kept."""
    answers = iter([{}, {"torch_ms": 900.0}])

    def child(*folders, measure):
        for answer in answers:
            return answer
        raise start.ChildFailed("Triton was imported: triton")

    monkeypatch.setattr(start, "gpu", lambda: stand_in("sm_90"))
    monkeypatch.setattr(start, "_child", child)
    report_path = tmp_path / "report.json"
    assert not start.run(processes=3, cache_dir=None, json=report_path)
    assert "failed: Triton was imported: triton" in capsys.readouterr().out
    report = json.loads(report_path.read_text())
    assert report["processes"] == [{"torch_ms": 900.0}]
    assert report["problems"] == ["Triton was imported: triton"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there: the process would succeed")
def test_a_process_that_ends_with_an_error_says_its_last_line(tmp_path):
    """A real child without a GPU: torch's own message comes back."""
    with pytest.raises(start.ChildFailed, match=r"(?i)cuda|nvidia"):
        start._child(tmp_path / "jitd", tmp_path / "triton", measure=True)


# -- command line -----------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command):
    """The example is a line that can be pasted."""
    result = RUNNER.invoke(cli.app, [command, "--help"])
    assert result.exit_code == 0
    assert f"  python -m jitd.tools.bench {command}" in result.output


def test_the_list_of_commands_is_tested_in_full():
    """A new command has to be named here, and so gets the tests of all."""
    assert tuple(info.name for info in cli.app.registered_commands) == COMMANDS


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in WITHOUT_A_GPU])
def test_without_a_gpu_one_line_says_so(command, no_gpu):
    """Exit code 1, nothing on stdout, no traceback."""
    result = RUNNER.invoke(cli.app, [command])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "a benchmark needs an NVIDIA GPU: no NVIDIA driver (libcuda.so.1) on this machine."
    ]


def test_the_daemon_is_measured_without_a_gpu(tmp_path, no_gpu, monkeypatch):
    """A real daemon is started, asked and stopped, and every figure is in the report."""
    for name in ("_STARTS", "_QUESTIONS", "_MISSES"):
        monkeypatch.setattr(daemon, name, 4)
    file = tmp_path / "daemon.json"
    result = RUNNER.invoke(cli.app, ["daemon", "--json", str(file)])
    assert result.exit_code == 0, result.output
    report = json.loads(file.read_text())
    assert {name: len(figure["values"]) for name, figure in report.items()} == {
        "start to first answer": 4,
        "a status": 4,
        "connect and greet": 1,
        "memory, idle": 1,
        "a miss, besides the reference": 4,
    }
    assert all(value > 0 for figure in report.values() for value in figure["values"])


def test_the_cache_is_measured_without_a_gpu(tmp_path, no_gpu):
    """Each size is a row with every figure that has a goal, and what was made is removed."""
    file = tmp_path / "cache.json"
    RUNNER.invoke(
        cli.app, ["cache", "--records", "200", "--in", str(tmp_path), "--json", str(file)]
    )
    report = json.loads(file.read_text())
    (row,) = report["rows"]
    assert row["records"] == 200
    assert all(row[name] > 0 for name in report["goals"])
    assert [*tmp_path.iterdir()] == [file]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["group_norm", "--dtype", "int8"], "bf16"),
        (["group_norm", "--peer", "nothing"], "module:function"),
        (["group_norm", "--peer", "no_such_module:f"], "cannot import no_such_module"),
        (["start", "--processes", "0"], "--processes"),
        (["host", "--json", "no/such/folder/out.json"], "no folder no/such/folder"),
    ],
)
def test_bad_usage_is_refused_with_what_is_allowed(arguments, says):
    """Exit code 2, before anything is measured."""
    result = RUNNER.invoke(cli.app, arguments)
    assert result.exit_code == 2
    assert says in result.stderr


def test_options_reach_the_benchmark(monkeypatch, tmp_path, peer_module):
    """What is typed is what `run` is called with."""
    seen = {}
    monkeypatch.setattr(cli, "gpu", lambda: stand_in("sm_90"))
    monkeypatch.setattr(cli, "need_torch_with_cuda", lambda: None)
    monkeypatch.setattr(group_norm, "run", lambda **options: seen.update(options) or True)
    result = RUNNER.invoke(
        cli.app,
        ["group_norm", "--dtype", "fp16", "--add", "--no-compile", "--quick",
         "--peer", f"{peer_module}:norm", "--peer", f"{peer_module}:wrong",
         "--json", str(tmp_path / "out.json")],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    peers = seen.pop("peers")
    assert list(peers) == ["some_peers:norm", "some_peers:wrong"]
    assert seen == {
        "dtype": "fp16", "add": True, "with_compile": False, "quick": True,
        "json": tmp_path / "out.json",
    }  # fmt: skip


def test_a_run_with_a_failed_row_exits_with_1(monkeypatch):
    """So that a script notices."""
    monkeypatch.setattr(cli, "gpu", lambda: stand_in("sm_90"))
    monkeypatch.setattr(start, "run", lambda **options: False)
    assert RUNNER.invoke(cli.app, ["start"]).exit_code == 1


def test_an_unusable_cache_is_one_line(monkeypatch):
    """Expected failures have no traceback."""
    monkeypatch.setattr(cli, "gpu", lambda: stand_in("sm_90"))

    def refuse(**options):
        raise CacheFolderError("/cache is writable by others.")

    monkeypatch.setattr(start, "run", refuse)
    result = RUNNER.invoke(cli.app, ["start"])
    assert result.exit_code == 1
    assert result.stderr == "/cache is writable by others.\n"


# -- parts ------------------------------------------------------------------------------------


def test_a_peer_is_found_by_name(peer_module):
    """And called by the module's short name in the table."""
    assert resolve_peer(f"{peer_module}:norm").__name__ == "norm"
    assert list(resolve_peers([f"{peer_module}:norm"])) == ["some_peers"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("some_peers", "give module:function"),
        ("no_such_module:f", "cannot import no_such_module: ModuleNotFoundError"),
        ("some_peers:typo", "has no function 'typo'; it has norm, wrong"),
        ("some_peers:not_a_function", "has no function 'not_a_function'"),
    ],
)
def test_a_peer_that_is_not_there_says_why(text, says, peer_module):
    """One line each, with what could have been meant."""
    with pytest.raises(BadPeer, match=says) as caught:
        resolve_peer(text)
    assert "\n" not in str(caught.value)


def test_a_report_is_replaced_as_a_whole(tmp_path):
    """A reader sees the old one or the new one, and no scrap stays behind."""
    path = tmp_path / "report.json"
    environment.write_json(path, {"rows": []})
    environment.write_json(path, {"rows": [1]})
    assert json.loads(path.read_text()) == {"rows": [1]}
    assert list(tmp_path.iterdir()) == [path]


def test_the_elementwise_op_is_declared_like_any_other():
    """Its plan's arguments are those of its kernel, and its printed signature can be read back."""
    op, card = affine_silu.op, stand_in("sm_90")
    call = call_of(op, (torch.empty(2, 64, 32, 32, dtype=torch.bfloat16, device="meta"),))
    (launch,) = op.default(call, card).plan(call, card).launches
    check_launch(launch)
    assert op.parse(str(op.sign(call))) == op.sign(call)
    x = torch.randn(7)
    assert torch.equal(affine_silu(x), torch.nn.functional.silu(x))


def test_the_goals_file_needs_no_torch():
    """Help and goals are shown without a second of imports."""
    code = (
        "import sys; import jitd.tools.bench.cli, jitd.tools.bench.start, jitd.tools.bench.goals; "
        "sys.exit('torch' in sys.modules or 'triton' in sys.modules)"
    )
    environ = os.environ | {"PYTHONPATH": ":".join(str(Path(e).absolute()) for e in sys.path)}
    subprocess.run([sys.executable, "-c", code], env=environ, check=True, timeout=60)
