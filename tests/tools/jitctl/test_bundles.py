"""`export` and `import`: what one machine tuned warms another, and what does not count is said."""

import json
import os
import shutil
import stat
import time
from hashlib import blake2b
from importlib import import_module
from pathlib import Path

import jitd
import pytest
from jitd.cache.keys import Key
from jitd.cache.paths import open_root
from jitd.cache.store import Store
from jitd.tools.jitctl import bundles

from .conftest import OUTSIDE, Cli

PARTS = ("autotune", "cache", "jit", "models", "tools")
SCALE = [
    "warmup", "--import", "outside.ops",
    "--signature", "outside_scale[bf16](1000)", "--signature", "outside_scale[fp32](3000)",
]  # fmt: skip


@pytest.fixture
def machine(tmp_path, monkeypatch, capsys, card):
    """Another machine with such a card: a cache folder of its own, by name."""

    def make(name):
        return type(card)(tmp_path / name, monkeypatch, capsys)

    return make


@pytest.fixture
def key(cli, tmp_path):
    """A private key; its public half is beside it."""
    assert cli.run("keygen", str(tmp_path / "release.pem")).code == 0
    return tmp_path / "release.pem"


@pytest.fixture
def warm(card, key, tmp_path):
    """A signed bundle of a machine that is warm."""
    assert card.run(*SCALE).code == 0
    result = card.run("export", str(tmp_path / "warm.jitd"), "--sign", str(key))
    assert result.code == 0, result.err
    return tmp_path / "warm.jitd"


def document(result):
    assert result.code == 0, result.err
    return json.loads(result.out)


def work(result):
    """What a warmup compiled, tuned and checked."""
    stats = document(result)["stats"]
    return {name: stats.get(name, 0) for name in ("compiles", "tunes", "checks")}


def test_a_signed_bundle_leaves_nothing_to_do(machine, warm, key):
    """Where the signature is trusted, a warmup compiles, tunes and checks nothing."""
    there = machine("there")
    report = document(there.run("import", str(warm), "--require-signature", f"{key}.pub", "--json"))
    assert report["trusted"]
    assert report["records"]["imported"] == {"artifact": 2, "check": 2, "winner": 2}
    assert work(there.run(*SCALE, "--json")) == {"compiles": 0, "tunes": 0, "checks": 0}


def test_without_trust_checks_are_made_again(machine, warm):
    """Without a key to trust nothing is compiled or tuned, and every binary is checked anew."""
    there = machine("there")
    result = there.run("import", str(warm))
    assert "Left out: 2 checks, not under a trusted signature: made again" in result.out
    assert "--require-signature" in result.err
    assert work(there.run(*SCALE, "--json")) == {"compiles": 0, "tunes": 0, "checks": 2}


def test_a_bundle_is_the_same_from_everywhere(machine, card, tmp_path, monkeypatch):
    """Two machines that tuned at other times in other folders write the same bytes, and so does
    one that imported them."""
    assert card.run(*SCALE).code == 0
    assert card.run("export", str(tmp_path / "a")).code == 0
    other = machine("elsewhere/deep")
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 1e6)
    assert other.run(*SCALE).code == 0
    assert other.run("export", str(tmp_path / "b")).code == 0
    data = (tmp_path / "a").read_bytes()
    assert data == (tmp_path / "b").read_bytes()
    assert str(tmp_path).encode() not in data


def test_an_import_exports_the_same(machine, warm, key, tmp_path):
    """A bundle that was imported and exported again has the same digest: nothing was lost."""
    there = machine("there")
    assert there.run("import", str(warm), "--require-signature", f"{key}.pub").code == 0
    assert there.run("export", str(tmp_path / "again"), "--sign", str(key)).code == 0
    assert (tmp_path / "again").read_bytes() == warm.read_bytes()


def test_bundles_and_keys_are_private(warm, key):
    """Whatever the umask, a bundle and a private key can be read by their owner alone."""
    assert stat.S_IMODE(warm.stat().st_mode) == 0o600
    assert stat.S_IMODE(key.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        (["--op", "outside_scale"], True),
        (["--op", "other"], False),
        (["--arch", "sm_90"], True),
        (["--arch", "sm_80"], False),
        (["--model", "ltx2"], False),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_selection(card, tmp_path, options, kept):
    """Ops, models and architectures select; where nothing is selected no file is written."""
    assert card.run(*SCALE).code == 0
    result = card.run("export", str(tmp_path / "some"), *options, "--json")
    assert (result.code == 0) == kept == (tmp_path / "some").exists()
    assert kept or "jitctl list" in result.err


def test_an_op_brings_the_binaries_it_shares(card, tmp_path):
    """A binary that is filed under another op goes along with the op whose check names it."""
    assert card.run(*SCALE).code == 0
    store = Store(card.folder)
    for header in [*store.headers("artifact")]:
        record = store.record_for(header)
        store.put(header.key, record.body, meta={**header.meta, "op": "another"})
    exported = document(
        card.run("export", str(tmp_path / "one"), "--op", "outside_scale", "--json")
    )
    assert exported["kinds"]["artifact"] == 2


def test_own_records_stay(machine, warm, key):
    """What a cache has is kept and said, until --overwrite."""
    there = machine("there")
    trust = ["--require-signature", f"{key}.pub"]
    assert there.run("import", str(warm), *trust).code == 0
    store = Store(there.folder)
    mine = next(store.headers("winner", "outside_scale"))
    body = store.record_for(mine).body
    store.put(mine.key, {**body, "us": 1.0}, label=mine.label, meta=mine.meta)
    again = there.run("import", str(warm), *trust)
    assert "this cache has its own" in again.out
    assert store.get(mine.key).body["us"] == 1.0
    report = document(there.run("import", str(warm), *trust, "--overwrite", "--json"))
    assert report["records"]["known"] == {}
    assert store.get(mine.key).body["us"] == 2.0


def test_another_toolchain_is_refused_or_gives_seeds(machine, warm, monkeypatch):
    """Under another Triton a bundle is refused by both names; --seeds takes its winners, which
    then are where the tuning begins."""
    monkeypatch.setattr(bundles, "toolchain", lambda: "9.9.9+feed")
    there = machine("there")
    refused = there.refused("import", str(warm), code=1)
    assert "9.9.9+feed" in refused and "--seeds" in refused
    assert not there.folder.exists()
    report = document(there.run("import", str(warm), "--seeds", "--json"))
    assert report["records"]["seed"] == {"winner": 2}
    assert report["records"]["toolchain"] == {"artifact": 2}
    assert {name.split("/")[0] for name in there.files()} == {"winner"}


def test_another_architecture_is_refused(machine, warm, tmp_path):
    """A bundle for another architecture is refused, with and without --seeds."""
    with_80 = machine("with_80")
    store = Store(open_root(with_80.folder))
    body = {
        "cubin": b"x", "cubin_digest": blake2b(b"x", digest_size=20).hexdigest(), "symbol": "k",
        "shared": 0, "num_warps": 4, "params": [], "scratch_pointers": 2, "candidate": False,
    }  # fmt: skip
    key = Key.of("artifact", "k", target="sm_80", toolchain=bundles.toolchain())
    store.put(key, body, meta={"target": "sm_80"})
    assert with_80.run("export", str(tmp_path / "b")).code == 0
    there = machine("there")
    for options in ([], ["--seeds"]):
        refused = there.refused("import", str(tmp_path / "b"), *options, code=1)
        assert "sm_80" in refused and "sm_90" in refused
    assert not there.folder.exists()


def test_a_mixed_bundle_gives_what_fits(machine, card, tmp_path):
    """Of a bundle for two architectures a machine takes its own, and says what it left out."""
    assert card.run(*SCALE).code == 0
    key = Key.of("negative", "k", binary="0" * 40)
    Store(card.folder).put(key, {"reason": "no"}, meta={"target": "sm_80"})
    assert card.run("export", str(tmp_path / "b")).code == 0
    result = machine("there").run("import", str(tmp_path / "b"))
    assert result.code == 0
    assert "Left out: 1 negative, for another architecture" in result.out


def test_dry_run(machine, warm):
    """A dry run announces what a real one then imports, and makes not even the folder."""
    there = machine("there")
    announced = there.run("import", str(warm), "--dry-run")
    assert not there.folder.exists()
    done = there.run("import", str(warm))
    assert announced.out.replace("Would import", "Imported") == done.out


@pytest.mark.parametrize(
    ("kind", "change", "reason"),
    [
        ("artifact", {"cubin": b"of a stranger"}, "cubin_digest is not the digest"),
        ("winner", {"params": {"BLOCK": ["os.system"]}}, "it has params"),
        ("winner", {"outcomes": [{}]}, "it has outcomes"),
    ],
)
def test_records_that_jitd_did_not_make(machine, warm, card, tmp_path, kind, change, reason):
    """One record of a shape that no tune or compile leaves, and nothing of a bundle is filed: not
    even a binary under the digest of one that passed the check."""
    store = Store(card.folder)
    header = next(store.headers(kind))
    body = {**store.record_for(header).body, **change}
    store.put(header.key, body, label=header.label, meta=header.meta)
    assert card.run("export", str(tmp_path / "evil")).code == 0
    there = machine("there")
    message = there.refused("import", str(tmp_path / "evil"), code=1)
    assert header.path in message and reason in message
    assert not there.folder.exists()


def test_a_config_that_nobody_declared_is_no_winner(machine, card, tmp_path):
    """A winner with a BLOCK outside the op's space is a miss: it is tuned, not run."""
    assert card.run(*SCALE).code == 0
    store = Store(card.folder)
    for header in [*store.headers("winner")]:
        body = store.record_for(header).body
        body["params"]["BLOCK"] = 1 << 30
        store.put(header.key, body, label=header.label, meta=header.meta)
    assert card.run("export", str(tmp_path / "b")).code == 0
    there = machine("there")
    assert there.run("import", str(tmp_path / "b")).code == 0
    assert work(there.run(*SCALE, "--json"))["tunes"] == 2


def test_signatures_that_do_not_count(machine, warm, card, key, tmp_path):
    """Unsigned, signed by another key, with the signature of another bundle: refused by reason,
    and nothing is filed."""
    assert card.run("keygen", str(tmp_path / "other.pem")).code == 0
    assert card.run("export", str(tmp_path / "unsigned")).code == 0
    changed = next(Store(card.folder).headers("winner"))
    Store(card.folder).remove(changed)
    assert card.run("export", str(tmp_path / "less"), "--sign", str(key)).code == 0
    mixed = bytearray((tmp_path / "less").read_bytes())
    mixed[56:120] = warm.read_bytes()[56:120]
    (tmp_path / "mixed").write_bytes(mixed)
    there = machine("there")
    for file, public, reason in (
        ("unsigned", f"{key}.pub", "it is not signed"),
        ("warm.jitd", tmp_path / "other.pem.pub", "not signed by"),
        ("mixed", f"{key}.pub", "not signed by"),
    ):
        command = ["import", str(tmp_path / file), "--require-signature", str(public)]
        assert reason in there.refused(*command, code=1)
    assert not there.folder.exists()


def test_keys_that_cannot_be_used(cli, key, tmp_path, store):
    """A readable private key, a writable public one, no key, the wrong half, one that is there:
    each refused with what to do."""
    file = str(tmp_path / "b")
    store.put(Key.of("negative", "k", n=1), {"reason": "no"})
    assert "never replaced" in cli.refused("keygen", str(key), code=1)
    assert "No such file" in cli.refused("export", file, "--sign", str(tmp_path / "no"), code=1)
    assert "no regular file" in cli.refused("export", file, "--sign", str(tmp_path), code=1)
    assert "no private key" in cli.refused("export", file, "--sign", f"{key}.pub", code=1)
    key.chmod(0o644)
    assert f"chmod 600 {key}" in cli.refused("export", file, "--sign", str(key), code=1)
    public = tmp_path / "release.pem.pub"
    public.chmod(0o666)
    command = ["import", file, "--require-signature", str(public)]
    assert f"chmod go-w {public}" in cli.refused(*command, code=1)
    public.chmod(0o600)
    public.write_text("no key")
    assert "no public key" in cli.refused(*command, code=1)
    assert not (tmp_path / "b").exists()


def test_without_cryptography(cli, tmp_path):
    """Where the package for signatures is missing, one line says how to get it; what is not
    signed does without."""
    (tmp_path / "path" / "cryptography").mkdir(parents=True)
    (tmp_path / "path" / "cryptography" / "__init__.py").write_text("raise ImportError('none')")
    cli.path.insert(0, str(tmp_path / "path"))
    file = str(tmp_path / "b")
    for command in (["keygen", file], ["export", file, "--sign", file]):
        assert "pip install 'jitd[sign]'" in cli.refused(*command, code=1)
    assert "jitctl list" in cli.refused("export", file, code=1)


@pytest.mark.parametrize("what", ["missing", "folder", "fifo", "link", "text", "empty"])
def test_no_bundles(cli, tmp_path, what):
    """What is no bundle, nor even a regular file, is refused in one line, without waiting."""
    file = tmp_path / "b"
    match what:
        case "folder":
            file.mkdir()
        case "fifo":
            os.mkfifo(file)
        case "link":
            (tmp_path / "there").write_text("x")
            file.symlink_to("there")
        case "text" | "empty":
            file.write_text("thesis" * (what == "text"))
    reasons = {"missing": "No such file", "folder": "regular", "fifo": "regular", "link": "a link"}
    assert reasons.get(what, "begins with") in cli.refused("import", str(file), code=1)
    assert not cli.folder.exists()


@pytest.mark.parametrize("what", ["folder", "link", "no folder"])
def test_places_that_cannot_be_written(cli, store, tmp_path, what):
    """A bundle replaces no folder and no link, and leaves nothing where it could not be made."""
    store.put(Key.of("negative", "k", n=1), {"reason": "no"})
    file = tmp_path / "b"
    if what == "folder":
        file.mkdir()
    elif what == "link":
        file.symlink_to("there")
    else:
        file = tmp_path / "none" / "b"
    before = {*tmp_path.iterdir()}
    cli.refused("export", str(file), code=1)
    assert {*tmp_path.iterdir()} == before


HEAVY = {"torch", "triton", "numpy", "rich", "filelock", "cryptography"}


def test_bundles_without_signatures_are_light(cli, warm, tmp_path):
    """Export and import start neither torch nor Triton, nor what only signatures need."""
    there = type(cli)(tmp_path / "there")
    for command in (["import", str(warm)], ["export", str(tmp_path / "again")]):
        result = there.run(*command, imports=True)
        assert result.code == 0, result.err[-2000:]
        assert not HEAVY & result.imported


@pytest.mark.compiler
def test_install_paths_leave_no_trace(tmp_path):
    """Copies of jitd in two places compile with real Triton and export the same bytes."""
    asked = ["warmup", "--import", "outside.ops", "--signature", "outside_scale[bf16](1000)"]
    written = []
    for place in (tmp_path / "a", tmp_path / "some" / "where" / "else"):
        copy_of_jitd(place)
        machine = Cli(place / "cache")
        machine.path = [str(place)]
        result = machine.run(*asked, "--arch", "sm_90", cwd=place)
        assert result.code == 0, result.err
        assert machine.run("export", str(place / "b"), cwd=place).code == 0
        written.append((place / "b").read_bytes())
    assert written[0] == written[1]
    assert str(tmp_path).encode() not in written[0]


def copy_of_jitd(place):
    """Copy the packages `jitd` and `outside` below `place`, from wherever they are."""
    sources = shutil.ignore_patterns("__pycache__", *PARTS)
    shutil.copytree(Path(jitd.__file__).resolve().parent, place / "jitd", ignore=sources)
    for part in PARTS:
        (folder,) = import_module(f"jitd.{part}").__path__
        shutil.copytree(
            folder, place / "jitd" / part, ignore=shutil.ignore_patterns("__pycache__", "api")
        )
    shutil.copytree(Path(OUTSIDE) / "outside", place / "outside")


def test_what_lies_behind_is_exported(card, tmp_path, monkeypatch):
    """Records of read-only folders behind the cache go into the bundle: the same bytes."""
    assert card.run(*SCALE).code == 0
    assert card.run("export", str(tmp_path / "own")).code == 0
    behind = card.folder.rename(tmp_path / "behind")
    assert "no such records" in card.run("export", str(tmp_path / "none")).err
    monkeypatch.setenv("JITD_CACHE_PATH", str(behind))
    result = card.run("export", str(tmp_path / "theirs"))
    assert result.code == 0, result.err
    assert (tmp_path / "theirs").read_bytes() == (tmp_path / "own").read_bytes()


def test_an_import_keeps_the_bounds(machine, warm, monkeypatch):
    """What is imported beyond the bound is evicted again, binaries first."""
    monkeypatch.setenv("JITD_CACHE_MAX_FILES", "4")
    there = machine("there")
    assert there.run("import", str(warm)).code == 0
    kinds = [name.partition("/")[0] for name in there.files()]
    assert kinds.count("winner") == 2
    assert len(kinds) <= 4
