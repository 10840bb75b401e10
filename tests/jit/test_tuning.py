"""What a tune leaves behind and takes up again. Compiler and GPU are fakes; the store is real."""

from dataclasses import replace

import pytest
from fakes import CARD
from jitd.autotune.space import Space
from jitd.jit import warm
from jitd.jit.errors import NotReady, RefusedError
from jitd.jit.record import Workload
from jitd.jit.sign import Call, TensorSpec
from jitd.jit.task import DoesNotFit
from outside import ops
from outside.ops import ELEMENTWISE, scale

OP = scale.op
NAMES = [f"elementwise(BLOCK={b}, num_warps={w})" for b in (512, 1024, 2048) for w in (4, 8)]


class Killed(BaseException):
    """What a kill looks like from within: nothing of the process goes on."""


def call(n=4096, **changes):
    return Call({"x": TensorSpec("bf16", (n,), **changes), "factor": 2.0})


def kinds(builder):
    return sorted(header.key.kind for header in builder.store.headers())


@pytest.mark.parametrize("after", range(6))
def test_a_killed_tune_goes_on_where_it_was(machine, after):
    """Killed after any trial, the next process times exactly those that are left, and the winner's
    landscape has every candidate; the journal goes when the winner comes."""

    def kill(name):
        if name == NAMES[after]:
            raise Killed

    machine.on_trial = kill
    with pytest.raises(Killed):
        machine.process().get_or_build(OP, call(), "tune")
    assert kinds(machine.process()) == ["timing"]
    machine.on_trial = lambda name: None
    builder = machine.process()
    builder.get_or_build(OP, call(), "tune")
    assert sorted(machine.tasks[-1].known) == sorted(NAMES[: after + 1])
    body = builder.winners.body(OP, call())
    assert [trial["config"] for trial in body["outcomes"]] == NAMES
    assert "timing" not in kinds(builder)


def test_a_winner_known_from_before_is_compiled_and_checked(machine):
    """A winner whose run was in the killed process gets its binary and its check afterwards."""

    def kill_before_last(name):
        if name == NAMES[-2]:
            raise Killed

    machine.on_trial = kill_before_last
    machine.best = NAMES[0]
    with pytest.raises(Killed):
        machine.process().get_or_build(OP, call(), "tune")
    machine.on_trial = lambda name: None
    ready = machine.process().get_or_build(OP, call(), "tune")
    assert ready.config.name == NAMES[0]
    assert machine.checked == [NAMES[0]]
    assert machine.process().get_or_build(OP, call(), "strict").config.name == NAMES[0]


def test_changing_a_variant_times_only_its_own(machine):
    """Trials of one variant survive the change of another; a winner whose own code changed does
    not serve any more."""
    second = replace(ELEMENTWISE, name="second")
    both = replace(OP, variants=(ELEMENTWISE, second))
    machine.process().get_or_build(both, call(), "tune")
    assert len(machine.tasks[-1].configs) == 12
    vars(second)["digest"] = "its plan changed"
    assert machine.process().winner(both, call()) is None
    machine.process().get_or_build(both, call(), "tune")
    assert sorted(machine.tasks[-1].known) == sorted(NAMES)


def test_an_enlarged_space_times_only_what_is_new(machine, monkeypatch):
    """A new point of the space is tried by the next warmup, and nothing else again."""
    builder = machine.process()
    builder.get_or_build(OP, call(), "tune")
    larger = Space({"BLOCK": [512, 1024, 2048, 4096], "num_warps": [4, 8]}, default=lambda p: {})
    monkeypatch.setattr(larger, "default", ELEMENTWISE.space.default)
    monkeypatch.setattr(ops, "ELEMENTWISE", replace(ELEMENTWISE, space=larger))
    grown = replace(OP, variants=(ops.ELEMENTWISE,))
    assert machine.process().get_or_build(grown, call(), "tune").config is not None
    assert len(machine.tuned) == 1  # the winner serves
    machine.process().tune_again(grown, call(), fresh=False)
    assert sorted(machine.tasks[-1].known) == sorted(NAMES)
    assert machine.tasks[-1].stored == NAMES[-1]
    machine.process().tune_again(grown, call(), fresh=False)
    assert len(machine.tuned) == 2  # now it is complete


def test_fresh_means_everything(machine):
    """Tuning again, fresh, knows nothing but the stored winner, which it has to beat."""
    machine.process().get_or_build(OP, call(), "tune")
    machine.process().tune_again(OP, call(), fresh=True)
    assert machine.tasks[-1].known == {} and machine.tasks[-1].stored == NAMES[-1]


def test_after_an_upgrade_the_old_winner_serves(machine):
    """Another Triton: no call waits for a tune; the old winner is compiled and checked anew,
    counted, and is the one to beat when the bucket is tuned."""
    machine.best = NAMES[1]
    machine.process().get_or_build(OP, call(), "tune")
    machine.toolchain = "a newer triton"
    builder = machine.process()
    ready = builder.get_or_build(OP, call(), "tune")
    assert ready.config.name == NAMES[1]
    assert len(machine.tuned) == 1 and machine.checked == [NAMES[1]]
    assert builder.stats["former_winners"] == 1
    assert machine.process().get_or_build(OP, call(), "strict").config.name == NAMES[1]
    rows = warm.warm(machine.process(), Workload({OP.sign(call()).text: 1}), warm.Progress())
    assert [row.status for row in rows] == ["tuned"]
    assert machine.tasks[-1].stored == NAMES[1] and machine.tasks[-1].known == {}
    last = machine.process()
    last.get_or_build(OP, call(), "tune")
    assert last.stats["former_winners"] == 0


def test_what_does_not_compile_is_not_tried_again(machine):
    """A binary that Triton refuses is remembered: another tune in another process fails it at
    once, without a compiler."""
    refused = machine.pool.submit

    def submit(binary):
        future = refused(binary)
        if dict(binary.classes)["BLOCK"] == ("constexpr", 512):
            future = type(future)()
            future.set_exception(RefusedError("too small a block"))
        return future

    machine.pool.submit = submit
    machine.process().get_or_build(OP, call(), "tune")
    compiled = len(machine.pool.compiled)
    builder = machine.process()
    builder.tune_again(OP, call(), fresh=True)
    assert len(machine.pool.compiled) == compiled + 4 - 1  # the winner's is stored
    trials = {t["config"]: t for t in builder.winners.body(OP, call())["outcomes"]}
    assert trials[NAMES[0]]["reason"] == "does not compile"
    assert "too small a block" in trials[NAMES[0]]["detail"]


def test_a_noisy_card_is_noted_and_tuned_again_when_asked(machine):
    """A winner found while the canary drifted is marked; `again="noisy"` tunes just those."""
    machine.drift = 0.5
    workload = Workload({OP.sign(call()).text: 1, OP.sign(call(8192)).text: 1})
    warm.warm(machine.process(), Workload({OP.sign(call()).text: 1}), warm.Progress())
    machine.drift = 0.0
    warm.warm(machine.process(), workload, warm.Progress())
    assert machine.process().winners.body(OP, call())["noisy"] is True
    rows = warm.warm(machine.process(), workload, warm.Progress(), "noisy")
    assert [row.status for row in rows] == ["tuned", "known"]
    assert machine.process().winners.body(OP, call())["noisy"] is False


def test_stale_is_another_driver(machine):
    """A winner of another driver serves, and `again="stale"` tunes it again."""
    workload = Workload({OP.sign(call()).text: 1})
    warm.warm(machine.process(), workload, warm.Progress())
    newer = replace(machine.process(), device=replace(CARD, driver="999.1"))
    assert [r.status for r in warm.warm(newer, workload, warm.Progress())] == ["known"]
    assert [r.status for r in warm.warm(newer, workload, warm.Progress(), "stale")] == ["tuned"]
    assert [r.status for r in warm.warm(newer, workload, warm.Progress(), "stale")] == ["known"]


def test_what_does_not_fit_is_tuned_smaller(machine):
    """Where the inputs do not fit into the memory, the next smaller bucket that does is tuned, and
    the record of the large one says so; where none does, the reference answers."""

    def too_large():
        if machine.tasks[-1].call.x.numel > 4096:
            raise DoesNotFit(8 << 30, 4 << 30)

    machine.on_tune = too_large
    halving = replace(OP, smaller=lambda c: call(c.x.numel // 2) if c.x.numel > 4096 else None)
    builder = machine.process()
    ready = builder.get_or_build(halving, call(16384), "tune")
    assert ready.config.name == NAMES[-1]
    assert builder.stats["tuned_smaller"] == 2
    body = builder.winners.body(halving, call(16384))
    assert (body["signature"], body["tuned_at"]) == (
        "outside_scale[bf16](16384)",
        "outside_scale[bf16](4096)",
    )
    with pytest.raises(NotReady, match=r"8\.0 GiB of GPU memory, 4\.0 GiB are allowed") as caught:
        builder.get_or_build(OP, call(16384 * 2), "tune")
    assert caught.value.cause == "no_memory"


def test_what_does_not_fit_is_checked_smaller(machine):
    """Where a check does not fit into the memory, the next smaller bucket vouches for the binaries
    that it shares; an op that names none is answered by the reference."""

    def too_large(checked):
        if checked.x.numel > 4096:
            raise DoesNotFit(8 << 30, 4 << 30)

    machine.on_check = too_large
    halving = replace(OP, smaller=lambda c: call(c.x.numel // 2) if c.x.numel > 4096 else None)
    with pytest.raises(NotReady, match="is not checked: ") as caught:
        machine.process().get_or_build(OP, call(16384), "replay")
    assert caught.value.cause == "no_memory"
    builder = machine.process()
    builder.get_or_build(halving, call(16384), "replay")
    assert builder.stats["checked_smaller"] == 2
    assert builder.stats["checks"] == 1
    assert "tunes" not in builder.stats.snapshot()
