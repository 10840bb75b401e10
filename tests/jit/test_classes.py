"""The classes that jitd computes are those into which Triton itself puts the arguments."""

import json
import subprocess
import sys
from collections import defaultdict

import pytest

from .conftest import HERE

pytestmark = pytest.mark.compiler


@pytest.fixture(scope="module")
def found():
    """(parameter, Triton of the real argument, Triton of the mock, jitd's class) of many."""
    path = f"import sys; sys.path.insert(0, {str(HERE)!r})\n"
    done = subprocess.run(
        [sys.executable, "-c", path + (HERE / "specialise.py").read_text()],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [(name, real, mock, tuple(kind)) for name, real, mock, kind in json.loads(done.stdout)]


def test_a_mock_stands_for_its_class(found):
    """What a worker compiles for a class is what Triton would compile for the real argument."""
    assert [row for row in found if row[1] != row[2]] == []
    assert len(found) > 100


def test_two_specialisations_are_never_one_class(found):
    """Where Triton distinguishes two arguments, so does jitd: no binary serves both."""
    by_class = defaultdict(set)
    for name, real, _, kind in found:
        by_class[name, kind].add(real)
    assert {key: reals for key, reals in by_class.items() if len(reals) > 1} == {}


def test_two_classes_are_never_one_specialisation(found):
    """Where Triton does not distinguish, neither does jitd: nothing is compiled twice."""
    by_real = defaultdict(set)
    for name, real, _, kind in found:
        by_real[name, real].add(kind)
    assert {key: kinds for key, kinds in by_real.items() if len(kinds) > 1} == {}
