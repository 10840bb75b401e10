"""jitd: Triton kernels compiled on first use, tuned on the GPU at hand, kept for all processes.

    import jitd

    with jitd.record() as workload:     # which signatures a run asks for
        model(x)
    jitd.configure(mode="strict")       # never compile or tune from here on
    jitd.stats()                        # what was built, loaded, answered by the reference

Names are resolved when first used: `import jitd` imports neither torch nor Triton.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if __name__ != "jitd":  # an editable install could otherwise load this file twice
    raise ImportError("import jitd")

__version__ = "0.1.0"

if TYPE_CHECKING:
    from jitd.autotune.space import Space
    from jitd.cache.errors import JitdError
    from jitd.jit.declare import Cost, Kernel, Launch, Plan, Pointer, Variant, Workspace
    from jitd.jit.errors import ColdKernelError
    from jitd.jit.op import op
    from jitd.jit.record import Workload, record
    from jitd.jit.runtime import configure
    from jitd.models.patch.patching import patch, unpatch
    from jitd.models.patch.report import PatchReport

_HOMES = {
    "ColdKernelError": "jitd.jit.errors",
    "Cost": "jitd.jit.declare",
    "JitdError": "jitd.cache.errors",
    "Kernel": "jitd.jit.declare",
    "Launch": "jitd.jit.declare",
    "PatchReport": "jitd.models.patch.report",
    "Plan": "jitd.jit.declare",
    "Pointer": "jitd.jit.declare",
    "Space": "jitd.autotune.space",
    "Variant": "jitd.jit.declare",
    "Workload": "jitd.jit.record",
    "Workspace": "jitd.jit.declare",
    "configure": "jitd.jit.runtime",
    "op": "jitd.jit.op",
    "patch": "jitd.models.patch.patching",
    "record": "jitd.jit.record",
    "unpatch": "jitd.models.patch.patching",
}

__all__ = [*_HOMES, "stats"]  # noqa: PLE0604  (strings all the same)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'jitd' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def stats() -> dict[str, int]:
    """What this process did so far: compiles, tunes, checks, loads, answers by the reference.

    `reference:<cause>` counts the calls that a kernel did not answer, by cause.
    """
    from jitd.jit.stats import STATS  # noqa: PLC0415

    return STATS.snapshot()
