"""`clear-cache`: removes what it says, asks first, and touches nothing of anybody else."""

import json
import os
import pty
import select
import subprocess
import sys
import time

import pytest
from jitd.cache.keys import Key


@pytest.fixture
def filled(cli, store, put_winner):
    """Two ops on two architectures: winners, artifacts (under the kernel's name), a receipt, and
    the note of an interrupted warmup."""
    for op, target in (("scale", "sm_90"), ("shift", "sm_80")):
        put_winner(op, f"{op}[bf16](64)", target=target)
        key = Key.of("artifact", f"{op}_kernel", target=target)
        store.put(key, {"cubin": b"1"}, meta={"op": op, "target": target})
    store.put(Key.of("receipt", "ltx2", target="sm_90"), {"paths": [], "rows": []})
    meta = {"op": "ltx2", "target": "sm_90"}
    store.put(Key.of("workload", "resume", request="jitctl warmup --model ltx2"), {}, meta=meta)
    return cli


def test_everything_goes(filled):
    """Without a filter all records go, and the folder can be used again."""
    result = filled.run("clear-cache", "--yes")
    assert result.code == 0
    assert "Removed 6 files" in result.out
    assert filled.files() == set()
    assert "Nothing to remove" in filled.run("clear-cache", "--yes").out


def test_only_what_jitd_wrote(filled, tmp_path):
    """Foreign files beside, between and named like records stay, and so do links' targets."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    shard = next(path for path in (filled.folder / "winner" / "scale").iterdir())
    foreign = [
        filled.folder / "notes.txt",
        filled.folder / "winner" / "notes.txt",
        shard / "notes.txt",
        shard / ("0" * 40),
    ]
    for path in foreign:
        path.write_text("mine")
    link = shard / ("1" * 40)
    link.symlink_to(elsewhere)
    assert filled.run("clear-cache", "--yes").code == 0
    assert all(path.read_text() == "mine" for path in [*foreign, elsewhere])
    assert link.is_symlink()


def test_foreign_folder_is_refused(cli):
    """A folder that is no cache is refused, whatever is in it, and stays as it is."""
    cli.folder.mkdir(mode=0o700)
    (cli.folder / "thesis.txt").write_text("mine")
    assert ".jitd-cache" in cli.refused("clear-cache", "--yes", code=1)
    assert (cli.folder / "thesis.txt").exists()


WARMED = {"receipt/ltx2", "workload/resume"}
SCALE = {"winner/scale", "artifact/scale_kernel"}
SHIFT = {"winner/shift", "artifact/shift_kernel"}


@pytest.mark.parametrize(
    ("options", "left"),
    [
        (["--op", "scale"], SHIFT | WARMED),
        (["--arch", "sm_80"], SCALE | WARMED),
        (["--keep-winners"], {"winner/scale", "winner/shift"}),
        (["--op", "scale", "--keep-winners"], {"winner/scale"} | SHIFT | WARMED),
        (["--op", "scale", "--op", "shift", "--arch", "sm_90"], SHIFT | WARMED),
        (["--model", "ltx2"], SCALE | SHIFT),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_filters(filled, options, left):
    """Each filter selects by what the headers say; several must all be met."""
    assert filled.run("clear-cache", *options, "--yes").code == 0
    assert {"/".join(name.split("/")[:2]) for name in filled.files()} == left


def test_older_than(filled, store):
    """Only what was not used for so long goes."""
    old = next(store.headers("artifact", "scale_kernel"))
    long_ago = time.time() - 40 * 86_400
    os.utime(filled.folder / old.path, (long_ago, long_ago))
    assert "Removed 1 file" in filled.run("clear-cache", "--older-than", "30d", "--yes").out
    assert old.path not in filled.files()
    assert len(filled.files()) == 5


@pytest.mark.parametrize("options", [[], ["--op", "scale"]], ids=["all", "some"])
def test_dry_run(filled, options):
    """A dry run announces exactly what a real run then removes, and removes nothing."""
    before = filled.files()
    announced = filled.run("clear-cache", "--dry-run", *options)
    assert announced.code == 0
    assert filled.files() == before
    removed = filled.run("clear-cache", "--yes", *options)
    assert announced.out.replace("Would remove", "Removed") == removed.out


def test_for_programs(filled):
    """--json says how many files and bytes of which kinds went."""
    document = json.loads(filled.run("clear-cache", "--yes", "--json").out)
    assert document["files"] == 6
    assert document["bytes"] > 0
    assert document["kinds"] == {"artifact": 2, "receipt": 1, "winner": 2, "workload": 1}


def test_no_terminal_no_answer(filled):
    """Where it cannot ask, it wants --yes, and removes nothing without."""
    before = filled.files()
    assert "--yes" in filled.refused("clear-cache", code=2)
    assert filled.files() == before


@pytest.mark.parametrize(("answer", "code", "left"), [("n", 1, 6), ("y", 0, 0)])
def test_asks_on_a_terminal(filled, answer, code, left):
    """On a terminal it asks, and does as it is told."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "jitd.tools.jitctl", "clear-cache"],
        stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, env=filled.environment({}),
    )  # fmt: skip
    os.close(theirs)
    asked = b""
    while b"?" not in asked:
        assert select.select([ours], [], [], 60)[0], asked
        asked += os.read(ours, 1000)
    os.write(ours, f"{answer}\n".encode())
    process.communicate(timeout=60)
    os.close(ours)
    assert b"Remove 6 files" in asked
    assert process.returncode == code
    assert len(filled.files()) == left


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--older-than", "soon"], "30d"),
        (["--model", "gpt2"], "ltx2"),
        (["--arch", "hopper"], "sm_90"),
    ],
    ids=["age", "model", "arch"],
)
def test_wrong_filters(filled, options, words):
    """A filter that means nothing is refused, and names what is allowed."""
    before = filled.files()
    assert words in filled.refused("clear-cache", *options, "--yes", code=2)
    assert filled.files() == before
