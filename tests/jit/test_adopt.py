"""What of a bundle counts on a machine. Compiler and GPU are fakes; stores and files are real."""

import errno
import os

import pytest
from fakes import Machine
from jitd.cache import bundle, files
from jitd.cache.errors import CacheWriteError
from jitd.cache.paths import open_root
from jitd.cache.store import Store
from jitd.jit.adopt import Here, OtherMachine, plan, publish
from jitd.jit.sign import Call, TensorSpec
from outside.ops import scale

OP = scale.op
CALL = Call({"x": TensorSpec("bf16", (4096,)), "factor": 2.0})
HERE = Here("triton-of-the-tests", frozenset({"sm_90"}))


@pytest.fixture
def file(machine, tmp_path):
    """A bundle of a machine that tuned one signature."""
    builder = machine.process()
    builder.get_or_build(OP, CALL, "tune")
    headers = sorted(builder.store.headers(), key=lambda header: header.path)
    records = [builder.store.record_for(h) for h in headers if h.kind in bundle.CARRIED]
    bundle.write(tmp_path / "b", records)
    return tmp_path / "b"


@pytest.fixture
def there(tmp_path):
    return Store(open_root(tmp_path / "there"))


def carry(file, store, here=HERE, **how):
    with bundle.opened(file) as opened:
        made = plan(opened, here, store.has, **{"trusted": True, **how})
        publish(opened, made, store)
    return made


def test_a_trusted_bundle_is_all_that_a_launch_needs(file, there, monkeypatch):
    """Even in strict mode, which builds nothing, the imported records answer."""
    carry(file, there)
    builder = Machine.plug_in(there.root, monkeypatch.setattr).process()
    assert builder.get_or_build(OP, CALL, "strict").config.name == builder.winner(OP, CALL).name
    assert builder.stats.snapshot() == {}


def test_an_untrusted_one_is_checked_first(file, there, monkeypatch):
    """Checks of an unsigned bundle do not count, not even to launch in strict mode."""
    made = carry(file, there, trusted=False)
    assert made.count("verdict", "check") == 1
    builder = Machine.plug_in(there.root, monkeypatch.setattr).process()
    assert builder.look_up(OP, CALL, "strict") is None
    builder.get_or_build(OP, CALL, "tune")
    assert builder.stats.snapshot() == {"checks": 1}


def test_seeds_serve_until_they_are_tuned(file, there, monkeypatch):
    """A winner of another toolchain answers here, compiled and checked anew, and tuning begins
    with it."""
    machine = Machine.plug_in(there.root, monkeypatch.setattr)
    machine.toolchain = "newer"
    here = Here("newer", HERE.targets)
    with pytest.raises(OtherMachine, match=r"triton-of-the-tests.*newer.*1 of them: add --seeds"):
        carry(file, there, here)
    made = carry(file, there, here, seeds=True)
    assert (made.count("seed"), made.count("toolchain", "artifact")) == (1, 1)
    builder = machine.process()
    seed = builder.winners.former(OP, CALL)
    assert builder.get_or_build(OP, CALL, "tune").config == seed
    assert builder.stats.snapshot() == {"former_winners": 1, "compiles": 1, "checks": 1}
    builder.tune_again(OP, CALL, fresh=True)
    assert machine.tasks[-1].stored == seed.name


def test_a_seed_does_not_pass_for_newer(machine, file, there, monkeypatch):
    """Of a seed and the user's own former winner the own one serves, whichever came last."""
    mine = Machine.plug_in(there.root, monkeypatch.setattr)
    mine.toolchain, mine.best = "own, former", "elementwise(BLOCK=512, num_warps=4)"
    own = mine.process().get_or_build(OP, CALL, "tune").config
    carry(file, there, Here("newer", HERE.targets), seeds=True)
    mine.toolchain = "newer"
    former = mine.process().winners.former(OP, CALL)
    assert former.name == own.name == mine.best
    theirs = [h for h in there.headers("winner") if dict(h.parts)["toolchain"] == HERE.toolchain]
    assert there.record_for(theirs[0]).body["config"] != own.name


def test_a_machine_without_a_card_takes_every_architecture(file, there):
    """Where images are built there is no card to be held to, only a toolchain."""
    assert carry(file, there, Here(HERE.toolchain, None)).count("imported") == 3
    with pytest.raises(OtherMachine, match=r"it is for sm_90.*here is sm_100"):
        carry(file, there, Here(HERE.toolchain, frozenset({"sm_100"})), overwrite=True)


def test_a_full_disk_in_the_middle(file, there, monkeypatch):
    """What is filed before the disk is full is whole, and the next import does the rest."""
    write, written = files.write_whole, []

    def full(root, relative, *rest):
        if written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(relative)
        write(root, relative, *rest)

    monkeypatch.setattr(files, "write_whole", full)
    with pytest.raises(CacheWriteError, match="ENOSPC"):
        carry(file, there)
    assert [header.path for header in there.headers()] == written
    assert written[0].startswith("artifact/")  # winners come last: none is here without a binary
    monkeypatch.undo()
    made = carry(file, there)
    assert (made.count("known"), made.count("imported")) == (1, 2)
