"""Plans run in Triton's interpreter on CPU tensors: for tests, with JITD_INTERPRET=1."""

import importlib
import os
import sys
from typing import Any

import torch

from .declare import Config, Device, Plan, Pointer
from .device import stand_in
from .errors import NotReady
from .op import Op
from .sign import Call
from .tensors import DTYPES, empty

_DEVICE = stand_in("sm_90")


class Interpreted:
    """One call, computed by a config's plan, kernel by kernel; like `launch.Executable`.

    Without a config it takes the default of the first variant that is not `gpu_only`.
    Raises NotReady if there is none.
    """

    def __init__(self, op: Op, call: Call, config: Config | None = None) -> None:
        self.call = call
        chosen = config or _default(op, call, _DEVICE)
        if chosen is None:
            raise NotReady("unsupported", f"{op.name}: every variant needs a GPU")
        self.plan: Plan = chosen.plan(call, _DEVICE)

    def __call__(self, *tensors: torch.Tensor) -> Any:
        outputs = [empty(spec, "cpu") for spec in self.plan.outputs.values()]
        self.into(tensors, outputs)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def into(self, inputs: Any, outputs: Any) -> None:
        present = [name for name, value in self.call.tensors.items()]
        memory = dict(zip(present, (t for t in inputs if t is not None), strict=True))
        memory |= {name: memory[name].contiguous() for name in self.plan.contiguous}
        memory |= dict(zip(self.plan.outputs, outputs, strict=True))
        for name, workspace in self.plan.workspaces.items():
            memory[name] = torch.zeros(workspace.numel, dtype=DTYPES[workspace.dtype])
        for launch in self.plan.launches:
            function = _interpreted(launch.kernel.module, launch.kernel.name)
            args = {
                name: memory[value.name] if isinstance(value, Pointer) else value
                for name, value in launch.args.items()
            }
            function[launch.grid](**args, num_warps=launch.num_warps)


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
