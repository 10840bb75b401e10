"""What would make the host wait for the device. Shared by the tests of the models."""

from torch.utils._python_dispatch import TorchDispatchMode


class Waits(TorchDispatchMode):
    """Notes every operation that would wait for a GPU."""

    WAITING = ("_local_scalar_dense", "nonzero", "item", "is_nonzero", "masked_select", "_unique2")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.__name__.split(".")[0] in self.WAITING:
            self.seen.append(func.__name__)
        return func(*args, **(kwargs or {}))
