"""Warming a workload, with a card and without one."""

from dataclasses import replace

import jitd
import pytest
from jitd.cache.paths import open_root
from jitd.cache.store import Store
from jitd.cache.tiers import store_over
from jitd.jit import runtime, warm
from jitd.jit.device import stand_in
from jitd.jit.op import OPS
from jitd.jit.record import Workload
from jitd.jit.toolchain import toolchain
from jitd.jit.warm import Progress, buckets, compile_for, read_receipt, receipt_key, write_receipt
from outside.ops import scale

OP = scale.op


def workload(*lengths):
    made = Workload()
    for n in lengths:
        made.add(f"outside_scale[bf16]({n})", 2)
    return made


def test_signatures_of_one_bucket_are_one(machine):
    """A workload is warmed bucket by bucket, with the calls of each added up."""
    found = buckets(workload(4096, 4000, 100, 4096))
    assert [(b.signature, b.calls) for b in found] == [
        ("outside_scale[bf16](4096)", 6),
        ("outside_scale[bf16](128)", 2),
    ]


def test_an_unknown_op_is_refused():
    """A signature of an op that nobody declared raises ValueError that names those there are."""
    unknown = Workload()
    unknown.add("nobodys_op[bf16](8)")
    with pytest.raises(ValueError, match=r"names no declared op; there are .*outside_scale"):
        buckets(unknown)


def test_warming_tunes_once_and_then_knows(machine):
    """The first warming tunes each bucket, the second finds everything; progress says so."""
    seen = []
    numbers = []

    def changed(progress):
        seen.append((progress.done, progress.total))
        if progress.doing == "checking" and progress.signature:
            numbers.append((progress.step, progress.steps))

    progress = Progress(changed=changed)
    rows = warm.warm(machine.process(), workload(4096, 100), progress)
    assert [(row.status, row.us, row.floor_us, row.eager_us) for row in rows] == [
        ("tuned", 2.0, 1.0, 3.0)
    ] * 2
    assert (rows[0].floor_share, rows[0].speedup) == (0.5, 1.5)
    assert seen[0] == (0, 2) and seen[-1] == (2, 2)
    assert numbers[-2:] == [(0, 2), (1, 2)]
    again = warm.warm(machine.process(), workload(4096, 100), Progress())
    assert [row.status for row in again] == ["known", "known"]
    assert len(machine.tuned) == 2


def test_other_classes_are_compiled_while_the_next_is_tuned(machine, monkeypatch):
    """The binary for a misaligned x goes to the compiler when its bucket is tuned, before the next
    is; it is checked when all are tuned."""
    misaligned = replace(OP, reach=lambda call: [call.replace(x=call.x.like(aligned=False))])
    monkeypatch.setitem(OPS, OP.name, misaligned)
    events, submit = [], machine.pool.submit

    def submitted(binary):
        if any(kind[0] == "pointer" and not kind[-1] for _, kind in binary.classes):
            events.append("compiled")
        return submit(binary)

    machine.pool.submit = submitted
    machine.on_tune = lambda: events.append("tuned")
    machine.on_check = lambda call: events.append("checked")
    rows = warm.warm(machine.process(), workload(4096, 100), Progress())
    assert [row.status for row in rows] == ["tuned", "tuned"]
    assert events == ["tuned", "compiled", "tuned", "checked"]  # both buckets' binary is the same


def test_a_signature_that_cannot_be_tuned_is_a_row(machine):
    """A failure is a row with its reason; the others are warmed all the same."""
    machine.hopeless = True
    rows = warm.warm(machine.process(), workload(4096, 100), Progress())
    assert [row.status for row in rows] == ["failed", "failed"]
    assert "off by one" in rows[0].detail


def test_a_receipt_answers_as_long_as_everything_is_there(machine):
    """A second warmup reads the first one's rows, unless a record is gone or options differ."""
    builder = machine.process()
    rows = warm.warm(builder, workload(4096), Progress())
    key = receipt_key("outside", {"size": "s"}, builder.device, builder.toolchain)
    assert read_receipt(builder.store, key) is None
    write_receipt(builder, key, workload(4096), rows)
    assert read_receipt(builder.store, key) == rows
    other = receipt_key("outside", {"size": "other"}, builder.device, builder.toolchain)
    assert read_receipt(builder.store, other) is None
    [artifact] = (path for path in (machine.root / "artifact").rglob("*") if path.is_file())
    artifact.unlink()
    assert read_receipt(builder.store, key) is None


def test_a_receipt_counts_where_its_records_are_behind(machine, tmp_path):
    """A cache that was warmed into an image is warm behind an empty one: nothing is written."""
    builder = machine.process()
    rows = warm.warm(builder, workload(4096), Progress())
    key = receipt_key("outside", {"size": "s"}, builder.device, builder.toolchain)
    write_receipt(builder, key, workload(4096), rows)
    own = open_root(tmp_path / "own")
    store = store_over(Store, own, [machine.root])
    assert read_receipt(store, key) == rows
    assert sorted(path.name for path in own.iterdir()) == [".jitd-cache", "CACHEDIR.TAG"]
    assert read_receipt(Store(own), key) is None


def test_code_has_a_digest():
    """Receipts hold only for the code that wrote them."""
    assert len(warm.code_digest()) == 32


@pytest.mark.compiler
def test_an_op_from_outside_is_compiled_for_real(tmp_path):
    """A machine without a GPU compiles a foreign op's default config for a card, with the real
    compiler, and a second time finds it."""
    jitd.configure(cache_dir=tmp_path / "cache")
    builder = runtime.current().builder(stand_in("sm_90"))
    rows = compile_for(builder, workload(4096, 100), Progress())
    assert [row.status for row in rows] == ["compiled", "compiled"]
    [header] = builder.store.headers("artifact")
    record = builder.store.record_for(header)
    assert record.body["cubin"][:4] == b"\x7fELF"
    assert header.meta["target"] == "sm_90" and toolchain() == builder.toolchain
    compiled = builder.stats["compiles"]
    compile_for(builder, workload(4096), Progress())
    assert builder.stats["compiles"] == compiled == 1


@pytest.mark.compiler
def test_the_whole_space_can_be_compiled(tmp_path):
    """With `whole_space` every candidate is compiled, so that the first tune compiles nothing."""
    jitd.configure(cache_dir=tmp_path / "cache")
    builder = runtime.current().builder(stand_in("sm_90"))
    compile_for(builder, workload(4096), Progress(), whole_space=True)
    assert len(list(builder.store.headers("artifact"))) == 6
