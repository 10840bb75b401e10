"""A compile worker: `python -m jitd.jit.worker`. Requests on stdin, answers on stdout.

It compiles through Triton's own front door, `JITFunction.warmup`, under a stub driver for the
wanted target and with mock arguments of the wanted classes. It sees no GPU and imports no torch
(Triton 3.6 would, at one second), so starting one costs about what importing Triton does.
"""

import importlib
import os
import re
import sys
import traceback
from collections.abc import Iterable
from typing import Any

from . import frames


def main() -> None:
    """Answer requests until stdin closes."""
    answers = os.dup(1)  # kernels and ptxas may print: that must not land among the answers
    os.dup2(2, 1)
    sys.meta_path.insert(0, _NoTorch())
    while True:
        try:
            request = frames.receive(0)
        except frames.FrameError:
            return
        try:
            answer = compile_one(request) if "kernel" in request else _hello(request)
        except Exception as error:  # noqa: BLE001  (any failure of one kernel is an answer)
            detail = "".join(traceback.format_exception(error))
            answer = {"error": f"{type(error).__name__}: {error}"[:2000], "detail": detail[-8000:]}
        frames.send(answers, answer)


class _NoTorch:
    """Refuses to import torch. (`sys.modules["torch"] = None` would do for Triton 3.6; 3.9 takes
    the presence of the key for an import and stumbles over the None.)
    """

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "torch":
            raise ModuleNotFoundError("a compile worker does without torch", name=name)


def _hello(request: dict[str, Any]) -> dict[str, Any]:
    """Take over the parent's import path; import Triton, so that the first compile is quick."""
    _add_to_path(request["path"])
    import triton  # noqa: PLC0415

    return {"triton": triton.__version__}


def _add_to_path(entries: Iterable[str]) -> None:
    sys.path.extend(entry for entry in entries if entry not in sys.path)


def compile_one(request: dict[str, Any]) -> dict[str, Any]:
    """Compile `kernel` ([module, name]) for `target` (90) with `classes` and `options`.

    `classes` maps each parameter, in order, to its class (see `jit.binary.argument_class`); `path`,
    if given, is where the kernel's module may be found besides.
    Answers cubin, symbol, shared (bytes), and the parameters that the binary takes with their PTX
    types. Raises on anything that jitd cannot launch.
    """
    from triton.runtime import driver  # noqa: PLC0415

    _add_to_path(request.get("path", ()))
    module, name = request["kernel"]
    driver.set_active(_StubDriver(request["target"]))
    function = getattr(importlib.import_module(module), name)
    args = {n: _mock(kind) for n, kind in request["classes"].items()}
    compiled = function.warmup(**args, grid=(1, 1, 1), **request["options"])
    if hasattr(compiled, "result"):  # asynchronous compilation is on
        compiled = compiled.result()
    for scratch in ("global_scratch_size", "profile_scratch_size"):
        if getattr(compiled.metadata, scratch, 0):
            raise NotImplementedError(f"the kernel needs {scratch}: jitd cannot launch that")
    taken = [n for n in args if compiled.src.signature.get(n) not in (None, "constexpr")]
    types = _entry_types(compiled.asm["ptx"], compiled.metadata.name)
    scratch_pointers = len(types) - len(taken)
    if scratch_pointers not in (0, 1, 2) or types[len(taken) :] != ["u64"] * scratch_pointers:
        raise NotImplementedError(f"the binary takes {types}, the kernel {taken}")
    return {
        "cubin": compiled.asm["cubin"],
        "symbol": compiled.metadata.name,
        "shared": compiled.metadata.shared,
        "num_warps": compiled.metadata.num_warps,
        "params": [[n, t] for n, t in zip(taken, types, strict=False)],
        "scratch_pointers": scratch_pointers,
    }


def _entry_types(ptx: str, symbol: str) -> list[str]:
    """The PTX types of the parameters of `.entry symbol`, in order."""
    match = re.search(rf"\.entry\s+{re.escape(symbol)}\s*\((.*?)\)", ptx, re.DOTALL)
    if not match:
        raise NotImplementedError(f"no .entry {symbol} in the PTX")
    return re.findall(r"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)", match[1])


def _mock(kind: list[Any]) -> Any:
    """An argument that Triton puts into the class `kind`."""
    match kind:
        case ["constexpr", value]:
            return value
        case ["pointer", dtype, aligned]:
            return _pointer(dtype, aligned)
        case ["int", _, "1"]:
            return 1
        case ["int", "i32", divisible]:
            return 16 if divisible else 17
        case ["int", "i64", divisible]:
            return (1 << 33) + (0 if divisible else 1)
        case ["int", "u64", divisible]:
            return (1 << 63) + (0 if divisible else 1)
        case ["bool"]:
            return True
        case ["float"]:
            return 1.5
        case ["none"]:
            return None
    raise ValueError(f"unknown argument class {kind}")


def _pointer(dtype: str, aligned: bool) -> Any:
    import triton.language as tl  # noqa: PLC0415
    from triton.runtime.jit import MockTensor  # noqa: PLC0415

    names = {"bool": "int1", "u8": "uint8", "fp16": "float16", "bf16": "bfloat16"}
    names |= {"fp32": "float32", "fp64": "float64", "fp8e4nv": "float8e4nv", "fp8e5": "float8e5"}
    names |= {f"i{n}": f"int{n}" for n in (8, 16, 32, 64)}

    class Mock(MockTensor):  # type: ignore[misc]
        @staticmethod
        def data_ptr() -> int:
            return 0 if aligned else 1

    return Mock(getattr(tl, names[dtype]))


class _StubDriver:
    """As much of a Triton driver as compiling needs: it knows the target and nothing else."""

    def __init__(self, capability: int) -> None:
        from triton.backends.compiler import GPUTarget  # noqa: PLC0415

        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch  # type: ignore[no-any-return]  # one binder cache per target

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> Any:
        raise NotImplementedError("a compile worker has no device")


if __name__ == "__main__":
    main()
