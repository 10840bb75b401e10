"""The errors a user of jitd can meet. All are `JitdError`s and picklable."""

from ..cache.errors import JitdError

__all__ = ["ColdKernelError", "CompileError", "DeclarationError", "JitdError", "LaunchError"]


class DeclarationError(JitdError):
    """An op, variant or kernel is declared in a way that jitd cannot honour."""


class CompileError(JitdError):
    """Triton refused, crashed on, or ran out of time over a kernel."""


class LaunchError(JitdError):
    """The CUDA driver refused to load or launch a binary."""


class ColdKernelError(JitdError):
    """Mode `strict` met a signature that is not warm.

    `signature` is its printed form, `command` the line that warms it.
    """

    def __init__(self, signature: str, reason: str, command: str) -> None:
        super().__init__(signature, reason, command)
        self.signature, self.reason, self.command = signature, reason, command

    def __str__(self) -> str:
        return (
            f"{self.signature} is cold: {self.reason}. Mode strict never compiles, checks or "
            f"tunes. Run: {self.command}"
        )
