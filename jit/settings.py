"""Every setting of jitd, read in one place: argument > JITD_* environment variable > default."""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from ..cache import evict
from .errors import JitdError

Mode = Literal["tune", "background", "replay", "strict", "off", "auto"]
MODES: tuple[Mode, ...] = get_args(Mode)
DAEMON = ("auto", "off", "require")


class SettingError(JitdError, ValueError):
    """A setting has a value that it cannot have."""


def _setting(variable: str, default: Any, parse: Callable[[str], Any], meaning: str) -> Any:
    return field(
        default=default, metadata={"variable": variable, "parse": parse, "meaning": meaning}
    )


def _switch(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("", "0", "false", "no", "off"):
        return False
    raise ValueError("allowed are 1 and 0")


def _mode(text: str) -> str:
    if text not in MODES:
        raise ValueError(f"allowed are {', '.join(MODES)}")
    return text


def _daemon(text: str) -> str:
    if text not in DAEMON:
        raise ValueError(f"allowed are {', '.join(DAEMON)}")
    return text


def _metrics(text: str) -> str:
    if text and not text.isdigit() and not Path(text).is_absolute():
        raise ValueError("allowed are a port number, the absolute path of a file, or nothing")
    return text


def _not_negative(text: str) -> int:
    if int(text) < 0:
        raise ValueError("allowed are whole numbers from 0")
    return int(text)


def _positive(text: str) -> int:
    digits = text.strip()
    if not (digits.isascii() and digits.isdecimal() and int(digits)):
        raise ValueError("allowed are whole numbers from 1")
    return int(digits)


def _size(text: str) -> int:
    return _positive(str(evict.bytes_of(text)))


def _recording(text: str) -> str:
    """An absolute path, but for its {pid}: processes change their folder and fork."""
    if re.search(r"[{}]", text.replace("{pid}", "")):
        raise ValueError("allowed in braces is {pid} alone")
    if not text or text.endswith("/"):
        raise ValueError("allowed is the path of a file")
    return str(Path(text).absolute())


def _share(text: str) -> float:
    if not 0 < float(text) <= 1:
        raise ValueError("allowed are numbers above 0 and up to 1")
    return float(text)


def _folders(text: str) -> tuple[Path, ...]:
    return tuple(Path(folder) for folder in text.split(os.pathsep) if folder)


def _text(value: Any) -> str:
    """A value as it would be written into the environment."""
    return os.pathsep.join(map(str, value)) if isinstance(value, tuple | list) else str(value)


@dataclass(frozen=True)
class Settings:
    """The settings of one process. `Settings.read()` fills what is not given from JITD_*."""

    cache_dir: Path | None = _setting(
        "JITD_CACHE_DIR", None, Path, "cache folder; default: the user's cache folder / jitd"
    )
    cache_path: tuple[Path, ...] = _setting(
        "JITD_CACHE_PATH",
        (),
        _folders,
        "read-only caches to search after JITD_CACHE_DIR, in this order: FOLDER:FOLDER",
    )
    cache_max_bytes: int = _setting(
        "JITD_CACHE_MAX_BYTES", evict.MAX_BYTES, _size, "how large the cache may get: 500M, 4G"
    )
    cache_max_files: int = _setting(
        "JITD_CACHE_MAX_FILES", evict.MAX_FILES, _positive, "how many files the cache may hold"
    )
    mode: Mode = _setting("JITD_MODE", "auto", _mode, f"what a miss does: {', '.join(MODES)}")
    interpret: bool = _setting(
        "JITD_INTERPRET", False, _switch, "run kernels in Triton's interpreter on CPU tensors"
    )
    debug: bool = _setting(
        "JITD_DEBUG", False, _switch, "look at values before each call: row indices out of range"
    )
    record: str | None = _setting(
        "JITD_RECORD",
        None,
        _recording,
        "file that gets each signature this process asks for, once; {pid}: one for each process",
    )
    jobs: int = _setting(
        "JITD_JOBS", os.cpu_count() or 1, _positive, "compile workers; default: all cores"
    )
    compile_timeout_s: int = _setting(
        "JITD_COMPILE_TIMEOUT_S", 300, _positive, "seconds after which one compile is given up"
    )

    isolate: bool = _setting(
        "JITD_ISOLATE", True, _switch, "check and time candidates in a process of their own"
    )
    step_timeout_s: int = _setting(
        "JITD_STEP_TIMEOUT_S", 30, _positive, "seconds after which a candidate counts as hung"
    )
    tune_memory_share: float = _setting(
        "JITD_TUNE_MEMORY_SHARE", 0.5, _share, "share of the free GPU memory that a tune may take"
    )

    daemon: Literal["auto", "off", "require"] = _setting(
        "JITD_DAEMON", "auto", _daemon, f"whether to use the daemon: {', '.join(DAEMON)}"
    )
    daemon_dir: Path | None = _setting(
        "JITD_DAEMON_DIR", None, Path, "folder of the daemon's socket, locks and log"
    )
    daemon_idle_s: int = _setting(
        "JITD_DAEMON_IDLE_S",
        600,
        _not_negative,
        "seconds without work after which it ends; 0: never",
    )
    daemon_duty: float = _setting(
        "JITD_DAEMON_DUTY", 0.03, _share, "share of the time it may use a GPU that others use"
    )
    daemon_metrics: str = _setting(
        "JITD_DAEMON_METRICS", "", _metrics, "Prometheus metrics: a loopback port or a file"
    )

    @classmethod
    def read(cls, environ: Mapping[str, str] = os.environ, **given: Any) -> "Settings":
        """Settings from arguments, then the environment. Raises SettingError.

        A variable that is empty counts as not set: an empty path would be the current folder.
        """
        values = {k: v for k, v in given.items() if v is not None}
        for item in fields(cls):
            text = environ.get(item.metadata["variable"])
            if item.name in values or not text:
                continue
            try:
                values[item.name] = item.metadata["parse"](text)
            except ValueError as error:
                raise SettingError(f"{item.metadata['variable']}={text!r}: {error}.") from error
        return cls(**values)

    def replace(self, **changes: Any) -> "Settings":
        """A copy with changes. Raises SettingError for an unknown name or a wrong value."""
        known = {item.name: item.metadata for item in fields(self)}
        for name, value in changes.items():
            if name not in known:
                raise SettingError(f"no setting {name!r}; there are {', '.join(known)}.")
            try:
                if value is not None and not isinstance(value, bool):
                    changes[name] = known[name]["parse"](_text(value))
            except ValueError as error:
                raise SettingError(f"{name}={value!r}: {error}.") from error
        return replace(self, **changes)


def table(environ: Mapping[str, str] = os.environ) -> Iterator[tuple[str, str, str, str]]:
    """(variable, value, origin, meaning) of every setting, for `jitctl env`."""
    settings = Settings.read(environ)
    for item in fields(Settings):
        variable = item.metadata["variable"]
        origin = "environment" if environ.get(variable) else "default"
        yield variable, _text(getattr(settings, item.name)), origin, item.metadata["meaning"]
