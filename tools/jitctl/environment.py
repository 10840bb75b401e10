"""`jitctl env`, `jitctl doctor` and `jitctl --version`: what jitd finds around it."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import typer

from ...cache.errors import CacheFolderError
from ...cache.paths import is_network_filesystem, open_root
from ...cache.tiers import tiers_behind
from ...jit import settings
from ...jit.device import NoDevice, check, devices, driver
from ...jit.toolchain import toolchain
from . import folder
from .options import AsJson
from .output import count, say, say_json, size, table

_LEAST_TORCH = (2, 11)
_LEAST_TRITON = (3, 6)
_FREE_WARNING_BYTES = 2 << 30
_FREE_PROBLEM_BYTES = 64 << 20

Status = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """What one check of `doctor` found. `remedy` says what to do unless it is ok."""

    name: str
    status: Status
    text: str
    remedy: str = ""


def print_versions() -> None:
    """jitd, torch and triton, by their metadata: nothing is imported."""
    for name in ("jitd", "torch", "triton"):
        say(f"{name} {_version(name) or 'not installed'}")


def env(
    as_json: AsJson = False,
) -> None:
    """Print every setting: its value, where that comes from, what it means.

    \b
    Example:
      jitctl env
    """
    current = settings.Settings.read()
    cache, behind = folder.cache_dir(current), [str(path) for path in current.cache_path]
    rows = [
        (name, str(cache) if name == "JITD_CACHE_DIR" else value, origin, meaning)
        for name, value, origin, meaning in settings.table()
    ]
    if as_json:
        names = ("name", "value", "origin", "meaning")
        listed = [dict(zip(names, row, strict=True)) for row in rows]
        places = {"cache_dir": str(cache), "cache_path": behind}
        say_json({"settings": listed, **places, "toolchain": toolchain()})
        return
    table(("setting", "value", "origin", "meaning"), rows)
    say()
    say(f"cache folder: {cache}")
    for path in behind:
        say(f"behind it, read-only: {path}")
    say(f"toolchain: {toolchain()}")


def doctor(
    as_json: AsJson = False,
) -> None:
    """Check the cache folder, the GPU, the driver and the packages, and say what to do.

    Exits with 1 if anything is a problem; a warning is none.

    \b
    Example:
      jitctl doctor
    """
    current = settings.Settings.read()
    place = folder.cache_dir(current)
    findings = [
        *_folder(place),
        *_behind(place, current.cache_path),
        *_cards(),
        *_packages(),
        *_cuda_majors(),
        _compiler(),
        _daemon(place, current),
    ]
    problems = sum(finding.status == "problem" for finding in findings)
    if as_json:
        say_json({"problems": problems, "checks": [asdict(finding) for finding in findings]})
    else:
        table(("check", "", "found"), [(f.name, f.status, f.text) for f in findings])
        for finding in findings:
            if finding.remedy:
                say(f"\n{finding.status}: {finding.name}: {finding.remedy}")
        say()
        warnings = sum(finding.status == "warning" for finding in findings)
        say(f"{count(problems, 'problem')}, {count(warnings, 'warning')}")
    if problems:
        raise typer.Exit(1)


# -- the cache folder -------------------------------------------------------------------------


def _folder(place: Path) -> Iterator[Finding]:
    name = "cache folder"
    try:
        store = folder.open_for_reading(place)
    except CacheFolderError as error:
        yield Finding(name, "problem", f"{place} is refused", str(error))
        return
    except OSError as error:
        yield Finding(name, "problem", f"{place}: {error.strerror}", "Set JITD_CACHE_DIR.")
        return
    there = next(step for step in (place, *place.absolute().parents) if step.exists())
    if store is None and not os.access(there, os.W_OK | os.X_OK):
        remedy = f"Make {there} writable, or set JITD_CACHE_DIR to a folder that is."
        yield Finding(name, "problem", f"{place} cannot be made", remedy)
        return
    if store is None:
        yield Finding(name, "ok", f"{place}, made at the first use")
    else:
        yield _writable(store.root)
    yield _room(there)
    network = is_network_filesystem(there)
    if network:
        yield Finding(
            "file system",
            "warning",
            f"{network}, over the network",
            "Locks may do nothing there: records stay right, but two machines may build the same "
            "twice. A local disk is faster, too.",
        )
    else:
        yield Finding("file system", "ok", "local")


def _behind(place: Path, folders: Sequence[Path]) -> Iterator[Finding]:
    """The read-only folders of JITD_CACHE_PATH, each by itself."""
    for path in folders:
        usable, refused = tiers_behind(place, [path])
        for error in refused:
            remedy = f"It is left out. {error}"
            yield Finding("read-only folder", "warning", f"{path} cannot be used", remedy)
        for root in usable:
            network = is_network_filesystem(root)
            yield Finding("read-only folder", "ok", f"{root}{f', {network}' if network else ''}")


def _writable(root: Path) -> Finding:
    owner, mode = root.stat().st_uid, root.stat().st_mode & 0o7777
    text = f"{root}, owned by uid {owner}, mode {mode:04o}"
    try:
        open_root(root)
        with tempfile.TemporaryFile(dir=root) as probe:
            probe.write(bytes(4096))
            probe.flush()
    except OSError as error:
        return Finding(
            "cache folder",
            "warning",
            f"{text}, cannot be written: {error.strerror}",
            "What is in it serves; nothing is added. To warm, name another with JITD_CACHE_DIR.",
        )
    return Finding("cache folder", "ok", f"{text}, writable")


def _room(there: Path) -> Finding:
    free = shutil.disk_usage(there).free
    status: Status = "ok"
    if free < _FREE_WARNING_BYTES:
        status = "problem" if free < _FREE_PROBLEM_BYTES else "warning"
    remedy = "" if status == "ok" else "Make room: jitctl clear-cache --older-than 30d"
    return Finding("free space", status, size(free), remedy)


# -- GPU, packages ----------------------------------------------------------------------------


def _cards() -> Iterator[Finding]:
    try:
        driver()
    except NoDevice as error:
        yield Finding(
            "GPU",
            "warning",
            str(error),
            "Here jitctl warmup can compile; tune and check on a machine with an NVIDIA GPU.",
        )
        return
    found = devices()
    if not found:
        remedy = "Look at CUDA_VISIBLE_DEVICES and nvidia-smi."
        yield Finding("GPU", "warning", "the driver reports none", remedy)
    for card in found:
        text = f"{card}, {size(card.memory_bytes)}, driver {card.driver}"
        yield Finding(f"GPU {card.index}", "ok", text)


def _packages() -> Iterator[Finding]:
    for name, least in (("torch", _LEAST_TORCH), ("triton", _LEAST_TRITON)):
        wanted = ".".join(map(str, least))
        found = _version(name)
        if found is None and name == "triton":
            yield Finding(
                name,
                "warning",
                "not installed",
                f"A warm cache serves without it; to compile: pip install 'triton>={wanted}'",
            )
        elif found is None or _numbers(found) < least:
            remedy = f"pip install '{name}>={wanted}'"
            yield Finding(name, "problem", found or "not installed", remedy)
        else:
            text = toolchain() if name == "triton" else found
            yield Finding(name, "ok", text)


def _cuda_majors() -> Iterator[Finding]:
    """torch, cuda-bindings and the driver must be able to live in one process."""
    name = "CUDA"
    built, bindings = _torch_cuda(), _version("cuda-bindings")
    offers = _driver_cuda()
    texts = [
        f"torch {built or 'without CUDA'}",
        f"cuda-bindings {bindings or 'missing'}",
        f"driver {'.'.join(map(str, offers)) if offers else 'none'}",
    ]
    text = ", ".join(texts)
    if bindings is None:
        yield Finding(name, "problem", text, "pip install 'cuda-bindings>=12.9'")
    elif offers is None:
        yield Finding(name, "ok", text)
    elif built is None:
        remedy = "This torch cannot use the GPU that is here: install a CUDA build of it."
        yield Finding(name, "problem", text, remedy)
    elif max(_major(built), _major(bindings)) > offers[0]:
        remedy = (
            f"The driver is for CUDA {offers[0]}: update it, or install torch and "
            f"cuda-bindings for CUDA {offers[0]}."
        )
        yield Finding(name, "problem", text, remedy)
    elif _major(built) != _major(bindings):
        remedy = f"pip install 'cuda-bindings=={_major(built)}.*'"
        yield Finding(name, "warning", text, remedy)
    else:
        yield Finding(name, "ok", text)


def _compiler() -> Finding:
    found = shutil.which("cc") or shutil.which("gcc")
    return Finding("C compiler", "ok", f"not needed ({f'{found} is there' if found else 'none'})")


def _daemon(place: Path, current: settings.Settings) -> Finding:
    """The daemon is optional: one that is not there is fine, one that does not answer is not."""
    from ...jit.daemon.client import DaemonTrouble  # noqa: PLC0415
    from ...jit.daemon.place import Place  # noqa: PLC0415
    from .daemon import facts_of  # noqa: PLC0415

    if current.daemon == "off":
        return Finding("daemon", "ok", "off (JITD_DAEMON)")
    try:
        facts = facts_of(Place.of(place, current.daemon_dir))
    except DaemonTrouble as trouble:
        if trouble.cause == "absent":
            return Finding("daemon", "ok", "not running, not needed")
        remedy = "Run: jitctl daemon stop --kill; processes do its work meanwhile."
        return Finding("daemon", "warning", f"{trouble.cause}: {trouble.detail}", remedy)
    text = f"pid {facts['pid']}, {facts['running']} running, {facts['queued']} queued"
    return Finding("daemon", "ok", text)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _torch_cuda() -> str | None:
    """The CUDA version that torch was built for, read from its version.py: no import."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    match = re.search(r"^cuda\b[^=\n]*= *['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return match[1] if match else None


def _driver_cuda() -> tuple[int, int] | None:
    """The newest CUDA that the driver offers, None without one."""
    try:
        version = int(check(driver().cuDriverGetVersion()))
    except NoDevice:
        return None
    return version // 1000, version % 1000 // 10


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def _major(version: str) -> int:
    return _numbers(version)[0]
