"""The systemd units of the daemon."""

import os
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from ...jit.settings import Settings

if TYPE_CHECKING:
    from ...jit.daemon.place import Place

NAME = "jitd"


def folder() -> Path:
    """Where systemd looks for this user's units."""
    config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(config) / "systemd" / "user"


def units(place: "Place", settings: Settings) -> Mapping[str, str]:
    """File name -> text of the socket and the service."""
    environment = {
        "JITD_CACHE_DIR": str(place.cache_dir),
        "JITD_DAEMON_DIR": str(place.folder),
        "JITD_DAEMON_IDLE_S": str(settings.daemon_idle_s),
        "JITD_DAEMON_DUTY": str(settings.daemon_duty),
    }
    if settings.daemon_metrics:
        environment["JITD_DAEMON_METRICS"] = settings.daemon_metrics
    try:
        metadata.version("jitd")
    except metadata.PackageNotFoundError:  # run from a checkout
        environment["PYTHONPATH"] = os.pathsep.join(str(Path(p).absolute()) for p in sys.path if p)
    lines = "\n".join(f"Environment={_quoted(f'{k}={v}')}" for k, v in environment.items())
    return {
        f"{NAME}.socket": f"""\
[Unit]
Description=Socket of jitd, the kernel daemon

[Socket]
ListenStream={_escaped(str(place.socket))}
SocketMode=0600
DirectoryMode=0700

[Install]
WantedBy=sockets.target
""",
        f"{NAME}.service": f"""\
[Unit]
Description=jitd, the kernel daemon
Requires={NAME}.socket

[Service]
Type=exec
ExecStart={_quoted(sys.executable)} -m jitd.jit.daemon --quiet
{lines}
Restart=on-failure
KillMode=mixed
TimeoutStopSec=40
NoNewPrivileges=yes
""",
    }


def next_steps(*, remove: bool) -> list[str]:
    """The commands that bring a change of the units into effect."""
    if remove:
        return [f"systemctl --user stop {NAME}.socket {NAME}.service", _RELOAD]
    return ["jitctl daemon stop", _RELOAD, f"systemctl --user enable --now {NAME}.socket"]


_RELOAD = "systemctl --user daemon-reload"


def _escaped(text: str) -> str:
    return text.replace("%", "%%")


def _quoted(text: str) -> str:
    inner = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{_escaped(inner)}"'
