"""`bench tune` without a GPU: its arithmetic, its processes and what it prints and stores."""

import json
import random
import time
from concurrent.futures import Future
from contextlib import nullcontext
from types import SimpleNamespace

import jitd.jit.check
import pytest
import torch
from jitd.autotune.policy import Policy
from jitd.autotune.search import Candidate, CandidateFailed, Samples
from jitd.autotune.verify import Verdict
from jitd.cache.paths import open_root
from jitd.cache.store import Store
from jitd.jit.declare import check_launch
from jitd.jit.device import stand_in
from jitd.jit.errors import CompileError
from jitd.jit.launch import Loaded
from jitd.jit.runtime import builder_of
from jitd.jit.settings import Settings
from jitd.tools.bench import (
    against_triton,
    children,
    cli,
    pairs,
    picks,
    scaling,
    together,
    trials,
    tune,
    warmup,
)
from jitd.tools.bench.children import ChildFailed
from jitd.tools.bench.goals import Reached
from jitd.tools.bench.ops import rms_norm
from jitd.tools.bench.picks import Picks
from typer.testing import CliRunner

from ..jit.fakes import CARD as FAKE_CARD
from ..jit.fakes import Machine

CARD = stand_in("sm_90")
RUNNER = CliRunner()
RIGHT = Verdict(True, "", 0.1, 0.1, 0.2, 0, (), "float64")
WAIT_S = 60.0


class Timer:
    """Runs are names; what they take is in a table, times a clock that changes with each batch."""

    def __init__(self, speeds, clocks=()):
        self.speeds, self.clocks = speeds, list(clocks)
        self.batches, self.forgotten = [], []
        self.drift = 0.01

    def measure(self, run, reps):
        return Samples([self.speeds[run]] * reps, "events")

    def interleaved(self, runs, rounds):
        clock = self.clocks.pop(0) if self.clocks else 1.0
        self.batches.append(list(runs))
        return [Samples([clock * self.speeds[run]] * rounds, "events") for run in runs]

    def forget(self, run=None):
        self.forgotten.append(run)


REFUSED = {"bad": "wrong: off by one"}


class FakeTrials:
    """Candidates that are names, one of which was refused; speeds by the number in the name."""

    default = "b2"

    def __init__(self, builder, op, call, policy):
        self.refused = REFUSED
        self.configs = dict.fromkeys(["b3", "b2", "b1", "bad", "b4"])
        if call.x.shape[0] == 2:
            raise RuntimeError("no such luck")

    @property
    def valid(self):
        return [name for name in self.configs if name not in self.refused]

    def runner(self, name):
        return name

    def candidates(self):
        def build(name):
            if name in self.refused:
                raise CandidateFailed(self.refused[name])
            return name

        return [Candidate(name, lambda name=name: build(name)) for name in self.configs]

    def verify(self, candidate, run):
        return RIGHT

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        pass


SPEEDS = {"b1": 10.0, "b2": 20.0, "b3": 30.0, "b4": 40.0}


@pytest.fixture
def scripted(tmp_path, monkeypatch):
    """`scripted(text)`: a module of that text, for processes; its name."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(text):
        (tmp_path / "a_script.py").write_text(text)
        return "a_script"

    return write


# -- picks ------------------------------------------------------------------------------------


def picked(*empty, us=None, stored="b", with_stored=("b",)):
    return Picks(us or {"a": 10.0, "b": 10.1, "c": 10.5}, empty, stored, with_stored)


def test_regret_is_measured_against_the_fastest():
    """10.1 us is 1 % above 10 us; the worst is that of any pick, of both kinds of tunes."""
    one = picked("b", "a", "b", with_stored=["b", "c"])
    assert one.first_regret == pytest.approx(0.01)
    assert one.worst_regret == pytest.approx(0.05)
    assert (one.same, one.kept, one.best_us) == (2, 1, 10.0)
    assert json.loads(json.dumps(one.json()))["same"] == 2


def test_steady_means_nine_of_ten():
    """Fewer repeats are held to the same share."""
    assert picked(*"bbbbbbbbba").steady
    assert not picked(*"bbbbbbbbaa").steady
    assert picked(*"bbb").steady
    assert not picked(*"bba").steady


def test_goals_count_pairs():
    """Each goal has its share of the pairs, and says how many reached it."""
    good, loose = picked(*"bbbbbbbbbb"), picked(*"bbbbbaaaaa")
    bad = picked(*"cccccccccc", with_stored=["b", "c"])
    assert [goal.met for goal in picks.goals([good] * 20)] == [True] * 4
    first, worst, same, kept = picks.goals([good] * 19 + [bad])
    assert (first.met, first.value) == (True, "19 of 20")
    assert (worst.met, worst.value) == (False, "19 of 20, the worst 5.0%")
    assert (same.met, same.value) == (True, "20 of 20")
    assert (kept.met, kept.value) == (False, "19 of 20")
    assert not picks.goals([good] * 18 + [bad] * 2)[0].met
    assert picks.goals([good] * 7 + [loose] * 3)[2].met
    assert not picks.goals([good] * 6 + [loose] * 4)[2].met
    assert picks.goals([]) == []


# -- pairs ------------------------------------------------------------------------------------


def test_enough_pairs_of_different_buckets():
    """At least twenty, no two tuned as one, of several dtypes, each with a space, none large."""
    asked = [pairs._parsed(text) for text in pairs.SIGNATURES]
    assert len({op.sign(call).text for op, call in asked}) == len(asked) >= 20
    assert {call.x.dtype for _, call in asked} == {"bf16", "fp16", "fp32"}
    assert {op.name for op, _ in asked} == {"group_norm_silu", "group_norm_add_silu"}
    for op, call in asked:
        assert call.x.numel < 64 << 20
        assert len(op.configs(call, CARD)[0]) >= 16


def test_the_long_measurement_divides_out_the_clocks():
    """A batch at half the clock does not make its configs look slow: the one that takes part in
    every batch shows it."""
    speeds = {f"c{n}": 10.0 + n for n in range(20)}
    timer = Timer(speeds, clocks=[1.0, 2.0])
    found = pairs.long_measurement(list(speeds), lambda name: name, timer, "c3")
    assert all(batch[0] == "c3" for batch in timer.batches)
    assert [len(batch) for batch in timer.batches] == [16, 5]
    assert sorted(found) == sorted(speeds)
    ratio = {name: us / found["c3"] for name, us in found.items()}
    assert ratio == pytest.approx({name: us / 13.0 for name, us in speeds.items()})
    assert found["c3"] == pytest.approx(1.5 * 13.0)


def test_the_long_measurement_of_one_config():
    """It takes turns with itself."""
    timer = Timer({"only": 5.0})
    assert pairs.long_measurement(["only"], lambda name: name, timer, "only") == {"only": 5.0}
    assert pairs.REPS >= 60


def test_arrivals_are_shuffled_behind_the_first():
    """The stored winner and the default come first, everybody comes once."""
    trials = SimpleNamespace(configs=dict.fromkeys("abcdefgh"), default="c")
    one = pairs._arrivals(trials, "h", random.Random(1))
    two = pairs._arrivals(trials, None, random.Random(1))
    assert one[:2] == ["h", "c"]
    assert two[0] == "c"
    assert sorted(one) == sorted(two) == list("abcdefgh")
    assert one[2:] != sorted(one[2:])
    assert pairs._arrivals(SimpleNamespace(configs={"a": 1}, default="z"), None, random) == ["a"]


def test_repeats_are_cut_when_time_is_up_but_not_below_three():
    """What is promised in --help."""
    now = time.monotonic()
    assert pairs._repeated(lambda: "a", 10, now + WAIT_S) == ["a"] * 10
    assert pairs._repeated(lambda: "a", 10, now - 1) == ["a"] * 3
    assert pairs._repeated(lambda: "a", 2, now - 1) == ["a"] * 2


@pytest.fixture
def measured_pairs(monkeypatch):
    """`pairs.measure` over candidates that pretend; what it saved, and what it gives."""
    timer = Timer(SPEEDS)
    monkeypatch.setattr(pairs, "Trials", FakeTrials)
    monkeypatch.setattr(pairs, "CudaTimer", lambda index, policy: timer)
    monkeypatch.setattr(pairs, "copy_bandwidth", lambda index: 1e30)
    monkeypatch.setattr(pairs, "_compile_all", lambda builder, asked: None)
    monkeypatch.setattr(torch.cuda, "device", lambda index: nullcontext())

    def measure(*signatures, repeats=10):
        monkeypatch.setattr(pairs, "SIGNATURES", signatures)
        saved = {}
        goals = pairs.measure(CARD, tune.Options(repeats, 60.0), saved.update)
        return saved, goals

    return measure


def test_a_pair_is_tuned_searched_and_compared(measured_pairs, capsys):
    """Ten real searches each way over simulated times: all pick the fastest, which is stored."""
    text = "group_norm_silu[bf16](1x128x64x64, groups=32)"
    saved, goals = measured_pairs(text)
    (row,) = saved["rows"]
    assert row["empty"] == ["b1"] * 10
    assert row["with_stored"] == ["b1"] * 10
    assert (row["stored"], row["kept"], row["same"]) == ("b1", 10, 10)
    assert row["long_us"] == SPEEDS
    assert row["refused"] == REFUSED
    assert (row["first_regret"], row["worst_regret"]) == (0.0, 0.0)
    assert len(row["search_seconds"]) == len(row["drifts"]) == 20
    assert [goal.met for goal in goals] == [True] * 4
    printed = capsys.readouterr().out.splitlines()[-1]
    assert printed.split()[-8:-2] == ["4", "10.00", "0.00", "0.00", "10/10", "10/10"]


def test_a_pair_that_fails_does_not_cost_the_others(measured_pairs, capsys):
    """Its row has the reason, and the part does not count as measured."""
    bad, good = (f"group_norm_silu[bf16]({n}x128x64x64, groups=32)" for n in (2, 1))
    saved, goals = measured_pairs(bad, good, repeats=1)
    assert saved["pairs_failed"] == {bad: "RuntimeError: no such luck"}
    assert [row["empty"] for row in saved["rows"]] == [["b1"]]
    assert "failed: RuntimeError: no such luck" in capsys.readouterr().out
    assert (goals[-1].met, goals[-1].value) == (None, "1 of 2")


# -- trials -----------------------------------------------------------------------------------


class OnTheCpu:
    """An executable that computes the reference itself; one with 8 warps gets it wrong."""

    def __init__(self, plan, loaded, tensors, device):
        self.wrong = plan.launches[0].num_warps == 8

    def into(self, inputs, outputs):
        outputs[0].copy_(rms_norm.op.reference(*inputs) + self.wrong)


class Pool:
    """Compiles at once, but not for three stages."""

    def submit(self, binary):
        future = Future()
        if ("STAGES", ("constexpr", 3)) in binary.classes:
            future.set_exception(CompileError("it is broken"))
        else:
            future.set_result({"cubin": b"code", "shared": 0})
        return future


@pytest.fixture
def on_the_cpu(monkeypatch, tmp_path):
    """A builder; what needs a card is pretended, what a tune does to check is real."""
    binary = SimpleNamespace(local_bytes=0, unload=lambda: None)
    device = torch.device
    monkeypatch.setattr(trials.torch, "device", lambda *where: device("cpu"))
    monkeypatch.setattr(trials.torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(trials, "allowed_bytes", lambda device, share: 1 << 30)
    monkeypatch.setattr(Loaded, "load", lambda body, device: binary)
    for user in (trials, jitd.jit.check):
        monkeypatch.setattr(user, "Executable", OnTheCpu)
    store = Store(open_root(tmp_path / "cache"))
    return builder_of(store, CARD, Settings.read({}), Pool)


def test_trials_are_checked_as_a_tune_checks(on_the_cpu):
    """What does not compile or is wrong is refused with its reason; the rest can be searched, by
    a runner made anew for each search."""
    op = rms_norm.op
    call = op.parse("bench_rms_norm[fp32](4x96)").call
    only = [c.name for c in op.configs(call, CARD)[0] if c.params["BLOCK"] == 512]
    with trials.Trials(on_the_cpu, op, call, Policy(), only=only) as tried:
        assert sorted(tried.configs) == sorted(only)
        right = [n for n in only if "STAGES=3" not in n and "num_warps=8" not in n]
        assert tried.valid == right
        assert all("it is broken" in tried.refused[n] for n in only if "STAGES=3" in n)
        wrong = next(n for n in only if "STAGES=1, num_warps=8" in n)
        assert "beyond the bound" in tried.refused[wrong]
        made = {c.name: c for c in tried.candidates()}
        assert list(made) == list(tried.configs)
        assert made[right[0]].build() is not made[right[0]].build()
        made[right[0]].build()(1)
        assert tried.verify(made[right[0]], None).ok
        with pytest.raises(CandidateFailed, match="beyond the bound"):
            made[wrong].build()


# -- triton -----------------------------------------------------------------------------------


def test_there_are_enough_configs_to_compare_with():
    """At least 24, every one with the arguments that its kernel takes, at the default too."""
    op = rms_norm.op
    call = op.parse("bench_rms_norm[bf16](4096x4096)").call
    configs, dropped = op.configs(call, CARD)
    assert len(configs) >= 24
    assert not dropped
    assert op.default(call, CARD) in configs
    for config in configs:
        (launch,) = config.plan(call, CARD).launches
        check_launch(launch)
        assert launch.grid == (4096, 1, 1)
    assert op.parse(str(op.sign(call))) == op.sign(call)
    x, w = torch.randn(3, 40), torch.randn(40)
    torch.testing.assert_close(rms_norm(x, w), torch.nn.functional.rms_norm(x, (40,), w, 1e-6))


def test_the_ratio_is_of_the_warm_tune():
    """The first signature, which starts workers and child, has a ratio and no goal."""
    tuned = [
        against_triton.Tuned(against_triton.TRITON, 20.0, "rows(BLOCK=512)", {}, 20.0),
        against_triton.Tuned(against_triton.WARM, 4.0, "rows(BLOCK=1024)", {}, 19.5),
        against_triton.Tuned(against_triton.FIRST, 10.0, "rows(BLOCK=1024)", {}),
    ]
    theirs, warm, first = against_triton.rows_of(tuned)
    assert theirs[1:6] == ["20.00", "-", "", "", "20.00"]
    assert warm[1:6] == ["4.00", "5.0", ">= 5x", "met", "19.50"]
    assert first[1:6] == ["10.00", "2.0", "", "", "-"]
    assert all(len(cells) == len(against_triton.COLUMNS) for cells in (theirs, warm, first))
    (goal,) = against_triton.goals(tuned, 48)
    assert (goal.met, goal.value) == (True, "5.0x")
    assert against_triton.goals(tuned[1:], 48)[0].met is None


def test_the_part_tunes_twice_and_asks_triton_once(monkeypatch, tmp_path, capsys):
    """fp16 starts workers and child, bf16 finds them up, each with an empty cache; what was found
    is saved although the winners cannot be timed."""
    machine = Machine(tmp_path, best="rows(BLOCK=2048, STAGES=2, num_warps=4)")
    machine.close = lambda: None
    asked, saved = [], {}

    def by_triton(configs, cache):
        asked.append(len(configs))
        return against_triton.Tuned(against_triton.TRITON, 1e3, configs[0].name, {})

    monkeypatch.setattr(against_triton, "Isolated", lambda *given, **named: machine)
    monkeypatch.setattr(against_triton, "CompilePool", lambda jobs: nullcontext(machine.pool))
    monkeypatch.setattr(against_triton, "SETTLE_S", 0.0)
    monkeypatch.setattr(against_triton, "_by_triton", by_triton)
    monkeypatch.setattr(against_triton.torch.cuda, "device", lambda index: nullcontext())
    (goal,) = against_triton.measure(FAKE_CARD, tune.Options(), saved.update)
    assert machine.tuned == [
        "bench_rms_norm[fp16](4096x4096)",
        "bench_rms_norm[bf16](4096x4096)",
    ]
    assert not any(task.known or task.stored or task.seeds for task in machine.tasks)
    assert asked == [saved["configs"]]
    assert len(set(machine.pool.compiled)) == 2 * saved["configs"]
    assert goal.met
    first, warm, theirs = saved["tuned"]
    assert first["name"] == against_triton.FIRST
    assert warm["notes"]["statuses"] == {"timed": saved["configs"]}
    assert warm["config"] == machine.best
    assert (theirs["seconds"], theirs["us"]) == (1e3, None)
    printed = capsys.readouterr().out
    assert "the winners could not be timed" in printed
    assert f"{against_triton.WARM}: {saved['configs']} timed" in printed


# -- processes --------------------------------------------------------------------------------

SAYS = """
import json, pathlib, sys, time
spec = json.loads(sys.argv[1])
pathlib.Path(spec["ready"]).touch()
while not pathlib.Path(spec["gate"]).exists():
    time.sleep(0.001)
first = spec["ready"].endswith("0")
counts = {"tunes": 1, "compiles": 18} if first else {}
print(json.dumps({"done_at": time.monotonic(), "stats": counts, "winner": "split(CH=8)"}))
"""


def test_processes_are_let_go_together(scripted, monkeypatch):
    """Real processes wait for the gate; a row has the time from there to the last of them."""
    monkeypatch.setattr(together, "CHILD", scripted(SAYS))
    saved = {}
    goals = together.measure(CARD, tune.Options(), saved.update)
    assert [len(row["winners"]) for row in saved["rows"]] == [1, 8, 1]
    assert all(
        (row["tunes"], row["compiles"], row["agreed"]) == (1, 18, True) for row in saved["rows"]
    )
    assert all(0 < row["seconds"] < WAIT_S for row in saved["rows"])
    assert [goal.met for goal in goals[1:]] == [True, True]
    assert len(row(1.0, ["a"]).cells()) == len(together.COLUMNS)


def test_a_process_that_does_not_get_ready_is_an_error(scripted, tmp_path, monkeypatch):
    """It says its last line, and the others are ended."""
    text = "import sys\nsys.exit('no GPU in here')"
    monkeypatch.setattr(together, "CHILD", scripted(text))
    with pytest.raises(ChildFailed, match="no GPU in here"):
        together._round("1", 1, tmp_path / "round")


def row(seconds, winners, tunes=1, compiles=18, **stats):
    answers = [{"done_at": 100 + seconds, "winner": w, "stats": dict(stats)} for w in winners]
    answers[0]["stats"] |= {"tunes": tunes, "compiles": compiles}
    return together.row_of("some", 100.0, answers)


def test_eight_are_held_against_one_alone():
    """The mean of two runs alone; one tune, one compile per binary, one winner."""
    alone = [row(9.0, ["a"]), row(11.0, ["a"])]
    assert [goal.met for goal in together.goals(alone, row(13.0, ["a"] * 8))] == [True] * 3
    slow, twice, apart = (
        together.goals(alone, other)
        for other in (
            row(13.1, ["a"] * 8),
            row(10.0, ["a"] * 8, tunes=2, compiles=20),
            row(10.0, ["a"] * 7 + ["b"]),
        )
    )
    assert [goal.met for goal in slow] == [False, True, True]
    assert slow[0].value == "1.31x"
    assert [goal.met for goal in twice] == [True, False, True]
    assert [goal.met for goal in apart] == [True, True, False]
    answered = row(10.0, ["a"] * 8, **{"reference:busy": 1})
    assert answered.reference == 8
    assert not together.goals(alone, answered)[2].met


def test_a_process_that_takes_too_long_is_ended(scripted):
    """And the time that it had is said."""
    child = children.started(scripted("import time\ntime.sleep(600)"), {}, {})
    with pytest.raises(ChildFailed, match="more than 1 s"):
        children.answer(child, 1.0)
    assert child.poll() is not None


# -- workers ----------------------------------------------------------------------------------


def test_workers_are_capped_at_the_cores():
    """More would only wait for each other."""
    assert scaling.counts(16) == [1, 2, 4, 8, 16]
    assert scaling.counts(6) == [1, 2, 4]
    assert scaling.counts(1) == [1]


def test_binaries_are_taken_from_all_over():
    """As many as asked for, each once, in order; fewer where there are fewer."""
    assert scaling.spread(range(62), 32) == sorted(set(scaling.spread(range(62), 32)))
    assert len(scaling.spread(range(62), 32)) == 32
    assert scaling.spread(range(3), 32) == [0, 1, 2]


def test_speed_ups_are_over_one_worker():
    """With and without the start of the workers."""
    one, four = scaling.Row(1, 1.0, 20.0, 0), scaling.Row(4, 2.0, 5.0, 1)
    assert four.cells(one) == ["4", "2.00", "5.00", "4.00", "7.00", "3.00", "1"]
    stored = four.json(one)
    assert (stored["speedup"], stored["speedup_with_start"]) == (4.0, 3.0)


@pytest.mark.compiler
def test_workers_are_measured_without_a_gpu(monkeypatch, tmp_path, capsys):
    """The whole part, with one worker and one binary, from the command line."""
    monkeypatch.setattr(scaling, "WORKERS", (1,))
    monkeypatch.setattr(scaling, "BINARIES", 1)
    monkeypatch.setattr(tune, "devices", lambda: ())
    path = tmp_path / "out.json"
    result = RUNNER.invoke(cli.app, ["tune", "--part", "workers", "--json", str(path)])
    assert result.exit_code == 0, result.output
    report = json.loads(path.read_text())
    assert report["environment"]["gpu"] is None
    (found,) = report["parts"]["workers"]["rows"]
    assert found["workers"] == 1
    assert found["failed"] == 0
    assert found["compile_s"] > 0
    assert "no GPU, for sm_90" in result.output


# -- warmup -----------------------------------------------------------------------------------


def test_a_warmup_is_read_from_its_json(scripted, monkeypatch):
    """Signatures by what became of them, and what was compiled."""
    said = {
        "targets": [{"rows": [{"status": "tuned"}, {"status": "tuned"}, {"status": "failed"}]}],
        "stats": {"compiles": 40},
    }
    monkeypatch.setattr(warmup, "MODULE", scripted(f"print({json.dumps(json.dumps(said))})"))
    saved = {}
    assert warmup.measure(CARD, tune.Options(), saved.update) == []
    assert [one["cache"] for one in saved["rows"]] == ["cold", "warm"]
    assert [(one["tuned"], one["failed"], one["compiles"]) for one in saved["rows"]] == [
        (2, 1, 40)
    ] * 2
    assert saved["said"] == [said, said]
    assert len(warmup.row_of("cold", 1.0, said).cells()) == len(warmup.COLUMNS)


def test_a_warmup_without_json_says_why(scripted, tmp_path, monkeypatch):
    """The last line of what it said on stderr."""
    text = "import sys\nsys.exit('the cache folder is writable by others.')"
    monkeypatch.setattr(warmup, "MODULE", scripted(text))
    with pytest.raises(ChildFailed, match="writable by others"):
        warmup._run(tmp_path)


# -- parts and command line -------------------------------------------------------------------


@pytest.fixture
def parts(monkeypatch):
    """`parts(name=function)`: what the parts do instead; on a card that pretends."""
    made = {}
    monkeypatch.setattr(tune, "devices", lambda: (CARD,))
    monkeypatch.setattr(tune, "part_of", lambda name: made[name])
    return made


def test_a_part_that_fails_does_not_cost_the_others(parts, tmp_path, capsys):
    """It is printed and stored with its reason, after what it had found; the run counts as
    failed, and the goals of the others are summed up."""

    def breaks(device, options, save):
        save({"rows": [1]})
        raise ValueError("out of luck")

    def works(device, options, save):
        """what works"""
        save({"rows": [options.repeats]})
        assert json.loads(path.read_text())["parts"]["warmup"]["rows"] == [4]
        return [Reached("speed", ">= 5x", "6.0x", True)]

    parts |= {"triton": breaks, "warmup": works}
    path = tmp_path / "out.json"
    options = tune.Options(repeats=4)
    assert not tune.run(parts=["warmup", "triton"], options=options, json=path)
    stored = json.loads(path.read_text())
    assert list(stored["parts"]) == ["triton", "warmup"]
    assert stored["parts"]["triton"]["rows"] == [1]
    assert stored["parts"]["triton"]["failed"] == "ValueError: out of luck"
    assert stored["parts"]["warmup"]["goals"] == [
        {"what": "speed", "goal": ">= 5x", "value": "6.0x", "met": True}
    ]
    assert stored["environment"]["gpu"] == CARD.name
    printed = capsys.readouterr().out
    assert "triton failed: ValueError: out of luck" in printed
    assert "warmup: what works" in printed
    assert printed.splitlines()[-2:] == [
        "speed: 6.0x (goal >= 5x): met",
        "failed: triton",
    ]


def test_what_could_not_be_measured_fails_the_run(parts):
    """A goal that is missed does not; one without a figure does."""
    parts["pairs"] = lambda *given: [Reached("speed", ">= 5x", "4.0x", False)]
    assert tune.run(parts=["pairs"], options=tune.Options(), json=None)
    parts["pairs"] = lambda *given: [Reached("speed", ">= 5x", "-", None)]
    assert not tune.run(parts=["pairs"], options=tune.Options(), json=None)


def test_every_part_has_its_module():
    """The command line names the parts that there are, and each module measures."""
    assert {part.value for part in cli.Part} == set(tune.PARTS)
    for name in tune.PARTS:
        assert tune.part_of(name).__doc__
    help_text = RUNNER.invoke(cli.app, ["tune", "--help"]).output
    assert all(f"{name}:" in help_text for name in tune.PARTS)


def test_what_is_typed_reaches_the_parts(monkeypatch, tmp_path):
    """All parts if none is named; only the workers do without a GPU."""
    seen, asked = [], []
    monkeypatch.setattr(tune, "run", lambda **given: seen.append(given) or True)
    monkeypatch.setattr(cli, "gpu", lambda: asked.append("gpu") or CARD)
    monkeypatch.setattr(cli, "need_torch_with_cuda", lambda: None)
    assert RUNNER.invoke(cli.app, ["tune", "--part", "workers"]).exit_code == 0
    assert not asked
    path = tmp_path / "out.json"
    typed = ["--part", "pairs", "--part", "triton", "--repeats", "3", "--seconds", "60"]
    assert RUNNER.invoke(cli.app, ["tune", *typed, "--json", str(path)]).exit_code == 0
    assert RUNNER.invoke(cli.app, ["tune"]).exit_code == 0
    assert asked == ["gpu", "gpu"]
    workers, some, everything = seen
    assert workers["parts"] == ["workers"]
    assert some == {"parts": ["pairs", "triton"], "options": tune.Options(3, 60.0), "json": path}
    assert set(everything["parts"]) == set(tune.PARTS)
    assert RUNNER.invoke(cli.app, ["tune", "--part", "no_such"]).exit_code == 2
