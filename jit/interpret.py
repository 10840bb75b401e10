"""Plans run in Triton's interpreter on CPU tensors: for tests, with JITD_INTERPRET=1."""

import importlib
import os
import sys
from collections.abc import Mapping
from typing import Any

import torch

from .declare import Argument, Config, Device, Plan, Pointer
from .device import stand_in
from .errors import NotReady
from .op import Op
from .sign import Call, Passed
from .tensors import DTYPES, empty

_DEVICE = stand_in("sm_90")


class Interpreted:
    """One call, computed by a config's plan, kernel by kernel; like `launch.Executable`.

    Without a config it takes the default of the first variant that is not `gpu_only`.
    Raises NotReady if there is none.
    """

    def __init__(self, op: Op, call: Call, config: Config | None = None) -> None:
        self.call, self.varying = call, [a.name for a in op.varying]
        chosen = config or _default(op, call, _DEVICE)
        if chosen is None:
            raise NotReady("unsupported", f"{op.name}: every variant needs a GPU")
        self.plan: Plan = chosen.plan(call, _DEVICE)

    def __call__(self, *args: Any) -> Any:
        """Tensors, then the scalars that vary, if there are any; examples of them otherwise."""
        outputs = [empty(spec, "cpu") for spec in self.plan.outputs.values()]
        tensors = [a for a in args if a is None or isinstance(a, torch.Tensor)]
        values = dict(zip(self.varying, args[len(tensors) :], strict=len(args) > len(tensors)))
        self.into(tensors, outputs, values)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def into(self, inputs: Any, outputs: Any, values: Mapping[str, float] | None = None) -> None:
        present = [name for name, value in self.call.tensors.items()]
        memory = dict(zip(present, (t for t in inputs if t is not None), strict=True))
        memory |= {name: memory[name].contiguous() for name in self.plan.contiguous}
        memory |= dict(zip(self.plan.outputs, outputs, strict=True))
        for name, workspace in self.plan.workspaces.items():
            memory[name] = torch.zeros(workspace.numel, dtype=DTYPES[workspace.dtype])
        for launch in self.plan.launches:
            function = _interpreted(launch.kernel.module, launch.kernel.name)
            args = {n: _given(value, memory, values or {}) for n, value in launch.args.items()}
            function[launch.grid](**args, num_warps=launch.num_warps)


def _given(value: Argument, memory: Mapping[str, torch.Tensor], values: Mapping[str, float]) -> Any:
    match value:
        case Pointer(name):
            return memory[name]
        case Passed(name, example):
            return values.get(name, example)
    return value


def _default(op: Op, call: Call, device: Device) -> Config | None:
    from .declare import Problem  # noqa: PLC0415

    for variant in op.variants:
        if not variant.gpu_only and variant.applies(call) is None:
            return Config(variant, variant.space.default(Problem(call, device)))
    return None


def _interpreted(module: str, name: str) -> Any:
    if module not in sys.modules:
        os.environ["TRITON_INTERPRET"] = "1"  # read by @triton.jit when the module is imported
    function = getattr(importlib.import_module(module), name)
    if type(function).__name__ != "InterpretedFunction":
        raise NotReady(
            "unsupported", f"{module} was imported without TRITON_INTERPRET=1; start with it set"
        )
    return function
