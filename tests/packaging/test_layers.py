"""Who may import whom (ARCHITECTURE.md), read from the syntax tree of every module."""

import json
import subprocess
import sys

import pytest

from .checkout import imports, modules

# An import points down, or to its own part; `autotune` and `cache` are level and strangers.
LEVELS = {"tools": 4, "jitd": 3, "models": 2, "jit": 1, "autotune": 0, "cache": 0}

# Parts of jit/ that keep keys, build, compile and run workers: a compile worker, a command line
# that lists and a daemon pay for no torch.
LIGHT = [
    f"jitd.jit.{name}"
    for name in (
        "adopt", "artifacts", "background", "binary", "bodies", "build", "candidates", "child",
        "code", "compile", "declare", "device", "errors", "frames", "isolated", "keys", "op",
        "record", "recorder", "runtime", "settings", "shelf", "sign", "source", "stats", "task",
        "toolchain", "tuner", "warm", "winners", "worker",
        "daemon.client", "daemon.connection", "daemon.facts", "daemon.gpus", "daemon.housekeeping",
        "daemon.identity", "daemon.log", "daemon.metrics", "daemon.place", "daemon.protocol",
        "daemon.queue", "daemon.requests", "daemon.schedule", "daemon.server", "daemon.start",
        "daemon.worker", "daemon.workers",
    )
]  # fmt: skip
HEAVY = {"torch", "triton", "numpy", "diffusers", "transformers", "cuda", "rich", "typer"}
ALL = dict(modules())


def _part(name: str) -> str | None:
    """The part of jitd that an import name belongs to; None for everything else."""
    words = name.split(".")
    if words[0] != "jitd":
        return None
    return words[1] if len(words) > 1 and words[1] in LEVELS else "jitd"


def test_imports_point_downwards():
    """tools > the facade > models > jit > autotune, cache: no import points up or sideways."""
    wrong = []
    for module, file in ALL.items():
        mine = _part(module)
        for line, name in imports(module, file):
            other = _part(name)
            # `from ..cache import keys` names the package jitd.cache, not the facade above it.
            if other is None or other == mine or (other == "jitd" and name == "jitd"):
                continue
            if LEVELS[other] >= LEVELS[mine]:
                wrong.append(f"{file}:{line}: {mine} imports {name}")
    assert wrong == []


def test_nobody_inside_imports_the_facade():
    """Inside the folders imports are relative: by full name a file could be loaded twice."""
    wrong = []
    for module, file in ALL.items():
        if module == "jitd":
            continue
        source = file.read_text(encoding="utf-8").splitlines()
        for line, name in imports(module, file):
            text = source[line - 1].strip()
            if text.startswith(("import jitd", "from jitd")) or name == "jitd.jit.api":
                wrong.append(f"{file}:{line}: {text}")
    assert wrong == []


def test_kernels_import_triton_and_each_other():
    """Compile workers import kernel modules and must not pay for, or meet, anything else."""
    wrong = []
    for module, file in ALL.items():
        if not module.startswith("jitd.models.kernels"):
            continue
        for line, name in imports(module, file):
            if name.split(".")[0] != "triton" and not name.startswith("jitd.models.kernels"):
                wrong.append(f"{file}:{line}: {name}")
    assert wrong == []


@pytest.mark.parametrize("module", LIGHT)
def test_no_torch_at_module_level(module):
    """No line that importing the module runs names torch or Triton."""
    named = {name.split(".")[0] for _, name in imports(module, ALL[module], module_level=True)}
    assert named & HEAVY == set()


def test_importing_them_loads_nothing_heavy():
    """What the keeping of keys, building and compiling import, all together, is light for real."""
    assert _loaded(f"import {', '.join(LIGHT)}") & HEAVY == set()


def test_every_init_on_the_way_to_the_kernels_is_light():
    """A worker that imports a kernel module imports its packages first: no torch there either."""
    packages = ["jitd", "jitd.models", "jitd.models.kernels", "jitd.models.ops", "jitd.jit"]
    assert _loaded(f"import {', '.join(packages)}") & HEAVY == set()


def test_importing_jitd_is_light():
    """`import jitd` loads neither torch nor Triton, nor do its counters and its version."""
    assert _loaded("import jitd; jitd.stats(); jitd.__version__; dir(jitd)") & HEAVY == set()


def test_every_public_name_resolves():
    """Each name that `jitd` offers can be had, and no other can."""
    code = (
        "import jitd\nfor name in jitd.__all__: getattr(jitd, name)\n"
        "try: jitd.nonsense\nexcept AttributeError: pass\nelse: raise SystemExit(1)"
    )
    assert "jitd.jit.op" in _loaded(code)


def _loaded(code: str) -> set[str]:
    """The modules that a fresh process has after running `code`."""
    script = f"import json, sys\n{code}\nprint(json.dumps(list(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))
