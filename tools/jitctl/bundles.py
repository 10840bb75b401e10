"""`jitctl export`, `import` and `keygen`: what one machine tuned and checked, for another."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ...cache import bundle, signing
from ...cache.errors import BadBundle, JitdError
from ...cache.records import Header, Record
from ...cache.store import Store
from ...jit import adopt
from ...jit.device import devices
from ...jit.settings import Settings
from ...jit.toolchain import toolchain
from . import folder
from .clear import meant, owner, target
from .options import Archs, AsJson, Models, Ops
from .output import count, note, say, say_json, size

_WHY = {
    "known": "this cache has its own, which stay (--overwrite replaces them)",
    "verdict": "not under a trusted signature: made again on this machine",
    "arch": "for another architecture",
    "toolchain": "made by another toolchain",
}


def export(
    file: Annotated[Path, typer.Argument(help="The bundle to write.", metavar="FILE")],
    model: Models = None,
    op: Ops = None,
    arch: Archs = None,
    sign: Annotated[
        Path | None,
        typer.Option(help="Sign with this private key, of jitctl keygen.", metavar="KEY"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write winners, binaries and their checks into one file, for machines with such a GPU.

    Those of the folders of JITD_CACHE_PATH, too. Equal records give the same bytes wherever and
    whenever they are exported. Only a signed bundle saves the other machine the checks. The file is
    private (0600).

    \b
    Examples:
      jitctl export warm.jitd
      jitctl export ltx2.jitd --model ltx2 --arch sm_90 --sign release.pem
    """
    names, targets = meant(model, op, arch)
    signer = signing.signer(sign) if sign else None
    settings = Settings.read()
    place = folder.cache_dir(settings)
    store = folder.open_for_reading(place, settings.cache_path)
    headers = _selected(store, names, targets) if store else []
    if store is None or not headers:
        raise JitdError(
            f"nothing to export: no such records in {folder.place_of(store, place)}. "
            "To see what is there: jitctl list"
        )
    written = bundle.write(file, _records(store, headers), sign=signer)
    kinds = Counter(entry.kind for entry in written.entries)
    if as_json:
        document = {"file": str(file), "bytes": written.bytes, "records": len(written.entries)}
        more = {"kinds": dict(sorted(kinds.items())), "digest": written.digest}
        say_json({**document, **more, "signed": sign is not None, "cache_dir": str(place)})
        return
    say(f"Wrote {_kinds(kinds)} to {file}, {size(written.bytes)}, digest {written.digest[:16]}")
    if sign:
        say(f"There: jitctl import {file.name} --require-signature {sign.name}.pub")
    else:
        say(f"There, where each binary is checked again: jitctl import {file.name}")


def import_(
    file: Annotated[Path, typer.Argument(help="The bundle to read.", metavar="FILE")],
    require_signature: Annotated[
        Path | None,
        typer.Option(
            help="Refuse what is not signed by this public key; its checks count then.",
            metavar="PUBKEY",
        ),
    ] = None,
    seeds: Annotated[
        bool,
        typer.Option(
            "--seeds", help="Take another toolchain's winners: they serve until tuned again."
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace records that this cache has.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Verify, say what would be imported; import nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Read a bundle into the cache. It is verified whole before anything of it is filed.

    An unsigned bundle can hold machine code of anybody who had it in hands: import only what you
    would also install. Binaries are checked again here unless the bundle is signed by a key that
    you name. Records that the cache has stay as they are.

    \b
    Examples:
      jitctl import ltx2.jitd --require-signature release.pem.pub
      jitctl import warm.jitd --dry-run
      jitctl import old.jitd --seeds
    """
    from ...jit.runtime import keep  # noqa: PLC0415  (40 ms that the other commands do not need)

    verify = signing.verifier(require_signature) if require_signature else None
    settings = Settings.read()
    place = folder.cache_dir(settings)
    present = folder.open_for_reading(place)
    cards = devices()
    here = adopt.Here(toolchain(), frozenset(card.target for card in cards) if cards else None)
    with bundle.opened(file) as opened:
        if verify is not None:
            if opened.signature is None:
                raise BadBundle(file, f"it is not signed, and {require_signature} is required")
            if not verify(opened.signature, opened.message):
                raise BadBundle(file, f"it is not signed by {require_signature}")
        made = adopt.plan(
            opened,
            here,
            present.has if present else lambda key: False,
            trusted=verify is not None,
            seeds=seeds,
            overwrite=overwrite,
        )
        if not dry_run:
            store = folder.open_for_writing(place)
            keep(store, settings)
            adopt.publish(opened, made, store)
        signed = opened.signature is not None
    if as_json:
        say_json(_document(file, place, made, trusted=verify is not None, dry_run=dry_run))
        return
    verb = "Would import" if dry_run else "Imported"
    say(f"{verb} {_kinds(made.kinds('imported'))} from {file} into {place}")
    if found := made.kinds("seed"):
        say(f"As seeds, from another toolchain: {_kinds(found)}. To tune them: jitctl warmup")
    for fate, why in _WHY.items():
        if found := Counter(made.kinds(fate)):  # type: ignore[arg-type]
            say(f"Left out: {_kinds(found)}, {why}")
    if signed and verify is None:
        note("it is signed, but no key was named to trust: --require-signature PUBKEY")


def keygen(
    path: Annotated[Path, typer.Argument(help="The private key to write.", metavar="PATH")],
    as_json: AsJson = False,
) -> None:
    """Make a pair of Ed25519 keys for bundles: PATH, which stays secret, and PATH.pub.

    \b
    Example:
      jitctl keygen release.pem
    """
    public = signing.make_keys(path)
    if as_json:
        say_json({"private": str(path), "public": str(public)})
        return
    say(f"Wrote {path}, which signs: keep it secret (mode 0600).")
    say(f"Wrote {public}, which verifies: give it to those who import.")


def _selected(store: Store, names: Collection[str], targets: Collection[str]) -> list[Header]:
    """The headers to export, by path: of the ops named, with all binaries that they launch.

    A binary that two ops share is filed under one of them; the other's checks name its digest.
    """
    headers = [
        header
        for kind in sorted(bundle.CARRIED)
        for header in store.headers(kind)
        if not targets or target(header) in targets
    ]
    chosen = [header for header in headers if not names or owner(header) in names]
    if names:
        parts = [dict(header.parts) for header in chosen if header.kind == "check"]
        cubins = {cubin for part in parts for cubin in part.get("cubins") or ()}
        taken = {header.path for header in chosen}
        for header in headers:
            if header.kind == "artifact" and header.path not in taken:
                record = store.record_for(header)
                if record is not None and record.body.get("cubin_digest") in cubins:
                    chosen.append(header)
    return sorted(chosen, key=lambda header: header.path)


def _records(store: Store, headers: list[Header]) -> Iterator[Record]:
    """The records, one at a time; what is damaged or gone by now is left out, and logged."""
    for header in headers:
        record = store.record_for(header)
        if record is not None:
            yield record


def _document(
    file: Path, place: Path, made: adopt.Plan, *, trusted: bool, dry_run: bool
) -> Mapping[str, Any]:
    fates = {fate: dict(sorted(made.kinds(fate).items())) for fate in adopt.FATES}
    where = {"file": str(file), "cache_dir": str(place)}
    return {**where, "trusted": trusted, "dry_run": dry_run, "records": fates}


def _kinds(kinds: Mapping[str, int]) -> str:
    return ", ".join(count(number, kind) for kind, number in sorted(kinds.items())) or "nothing"
