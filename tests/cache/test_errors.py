"""The exceptions of the cache."""

import pickle

import pytest
from jitd.cache import errors


@pytest.mark.parametrize(
    "error",
    [
        errors.JitdError("a"),
        errors.CacheFolderError("refused"),
        errors.CacheWriteError("disk full", 28),
        errors.BadRecord("checksum", "the body is not what was written"),
        errors.BadBundle("warm.jitd", "it is cut short"),
        errors.BadValue("no"),
        errors.KeyRefused("others may read it"),
        errors.LockTimeout("no lock"),
        errors.LockUnavailable("no flock"),
        errors.LockOrderError("wrong order"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_survive_pickling(error: errors.JitdError) -> None:
    """An error that crosses a process border keeps its class, text and attributes."""
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)
