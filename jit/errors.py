"""The errors a user of jitd can meet. All are `JitdError`s and picklable."""

from ..cache.errors import JitdError

__all__ = [
    "ColdKernelError",
    "CompileError",
    "DeclarationError",
    "JitdError",
    "LaunchError",
    "NotReady",
    "RefusedError",
]


class DeclarationError(JitdError):
    """An op, variant or kernel is declared in a way that jitd cannot honour."""


class CompileError(JitdError):
    """Triton refused, crashed on, or ran out of time over a kernel.

    `lasting`: trying again would end in the same way.
    """

    lasting = False


class RefusedError(CompileError):
    """Triton refused a kernel, or took longer over it than a compile may."""

    lasting = True


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


class NotReady(JitdError):
    """There is no checked kernel for a call and there will be none now; the reference answers.

    `cause` is a word for the counters, `detail` a sentence.
    """

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(cause, detail)
        self.cause, self.detail = cause, detail

    def __str__(self) -> str:
        return f"{self.cause}: {self.detail}"
