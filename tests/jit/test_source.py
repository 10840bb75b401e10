"""Digests of kernel source: what moves them, what does not."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from jitd.jit.errors import DeclarationError
from jitd.jit.source import Parameter, function_source

KERNELS = '''\
"""A module of kernels."""
import triton
import triton.language as tl
from .helpers import square, UNUSED
from . import helpers as h

LIMIT = 16
OTHER = 3


@triton.jit
def twice(x):
    return x + x


@triton.jit(do_not_specialize=["n"], do_not_specialize_on_alignment=["stride"])
def kernel(out_ptr, n, stride, wide: tl.int64, BLOCK: tl.constexpr):
    """Writes."""
    # a comment
    at = tl.arange(0, BLOCK)
    tl.store(out_ptr + at, square(twice(at)) + h.offset(LIMIT), mask=at < n)
'''
HELPERS = """\
import triton

UNUSED = 1
STEP = 4


@triton.jit
def square(x):
    return x * x


@triton.jit
def offset(x):
    return x + STEP
"""


class Package:
    """A package of kernels on the disk, under a name that no other test uses."""

    def __init__(self, folder: Path) -> None:
        self.name = f"kernels_{abs(hash(str(folder))):x}"
        self.folder = folder / self.name
        self.folder.mkdir()
        (self.folder / "__init__.py").touch()
        self.write("kernels.py", KERNELS)
        self.write("helpers.py", HELPERS)

    def write(self, file: str, text: str) -> None:
        path = self.folder / file
        path.write_text(text)
        # Two writes of one size within a clock tick would look like one.
        os.utime(
            path, ns=(time.time_ns(), path.stat().st_mtime_ns + time.time_ns() % 1_000_000 + 1)
        )

    def change(self, file: str, old: str, new: str) -> None:
        text = (self.folder / file).read_text()
        assert old in text
        self.write(file, text.replace(old, new))

    @property
    def digest(self) -> str:
        return function_source(f"{self.name}.kernels", "kernel").digest


@pytest.fixture
def package(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    return Package(tmp_path)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("kernels.py", "# a comment", "# another, longer comment"),
        ("kernels.py", '"""Writes."""', '"""Writes, and says so."""'),
        ("kernels.py", '"""Writes."""\n    ', ""),
        ("kernels.py", '"""A module of kernels."""', '"""A module\n\n\nof kernels."""'),
        ("kernels.py", "\n\n\n@triton.jit\ndef twice", "\n\n\n\n\n\n@triton.jit\ndef twice"),
        ("kernels.py", "square(twice(at))", "square( twice(at) )"),
        ("kernels.py", "OTHER = 3", "OTHER = 4"),
        ("helpers.py", "UNUSED = 1", "UNUSED = 2"),
    ],
)
def test_what_changes_no_code_changes_no_digest(package, file, old, new):
    """Comments, docstrings, lines, spacing and what is not reached leave the digest alone."""
    before = package.digest
    package.change(file, old, new)
    assert package.digest == before


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("kernels.py", "mask=at < n", "mask=at <= n"),
        ("kernels.py", "LIMIT = 16", "LIMIT = 32"),
        ("kernels.py", "return x + x", "return x + x + x"),
        ("helpers.py", "return x * x", "return x * x * x"),
        ("helpers.py", "STEP = 4", "STEP = 8"),
        ("kernels.py", 'do_not_specialize=["n"]', 'do_not_specialize=["n", "stride"]'),
        ("kernels.py", "wide: tl.int64", "wide"),
        (
            "kernels.py",
            "from .helpers import square, UNUSED",
            "from .helpers import offset as square",
        ),
    ],
)
def test_what_changes_code_changes_the_digest(package, file, old, new):
    """Constants, called helpers (of other modules, too) and decorator arguments are covered."""
    before = package.digest
    package.change(file, old, new)
    assert package.digest != before


def test_a_touched_file_has_the_same_digest(package):
    """A new mtime makes the file be read again, and the digest stay what it was."""
    before = package.digest
    for file in ("kernels.py", "helpers.py"):
        os.utime(package.folder / file)
    assert package.digest == before


def test_nothing_is_imported(package):
    """The digest comes from the syntax tree: the module may even be impossible to import."""
    before = package.digest
    package.write("kernels.py", KERNELS + "\nraise SystemExit('imported')\n")
    assert package.digest == before
    assert f"{package.name}.kernels" not in sys.modules


def test_another_process_and_another_folder_agree(package, tmp_path):
    """Another hash seed and another folder give the same digest, without importing Triton."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    package.folder.rename(elsewhere / package.name)
    code = (
        f"import sys; sys.path.insert(0, {str(elsewhere)!r})\n"
        "from jitd.jit.source import function_source\n"
        f"print(function_source('{package.name}.kernels', 'kernel').digest)\n"
        "print('triton' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, env=environment, timeout=60, check=True,
    )  # fmt: skip
    (elsewhere / package.name).rename(package.folder)
    assert done.stdout.split() == [package.digest, "False"]


def test_parameters_are_what_the_kernel_declares(package):
    """Constexprs, fixed types and what is not specialised are read from `def` and decorator."""
    assert function_source(f"{package.name}.kernels", "kernel").parameters == (
        Parameter("out_ptr", False, None, True, True),
        Parameter("n", False, None, False, False),
        Parameter("stride", False, None, True, False),
        Parameter("wide", False, "i64", True, True),
        Parameter("BLOCK", True, None, True, True),
    )


def test_indices_do_as_well_as_names(package):
    """`do_not_specialize` may give positions, as in Triton."""
    package.change("kernels.py", 'do_not_specialize=["n"]', "do_not_specialize=[1]")
    n = function_source(f"{package.name}.kernels", "kernel").parameters[1]
    assert (n.specialize, n.align) == (False, False)


def test_a_list_may_be_a_constant(package):
    """Several kernels of a module may share one list of names, whose contents are covered."""
    package.change("kernels.py", "OTHER = 3", 'OTHER = ["n"]')
    package.change("kernels.py", 'do_not_specialize=["n"]', 'do_not_specialize=[*OTHER, "wide"]')
    source = function_source(f"{package.name}.kernels", "kernel")
    assert [p.name for p in source.parameters if not p.specialize] == ["n", "wide"]
    package.change("kernels.py", 'OTHER = ["n"]', 'OTHER = ["stride"]')
    assert package.digest != source.digest


def test_a_computed_list_is_refused(package):
    """What jitd cannot read without importing is refused, by name."""
    package.change("kernels.py", 'do_not_specialize=["n"]', "do_not_specialize=list('n')")
    with pytest.raises(DeclarationError, match="kernel: do_not_specialize must be a"):
        _ = package.digest


@pytest.mark.parametrize(
    ("module", "name", "says"),
    [
        ("nowhere.kernels", "kernel", "no module"),
        ("{}.kernels", "missing", "defines no 'missing'"),
        ("{}.kernels", "LIMIT", "not a function"),
        ("sys", "exit", "no Python source"),
    ],
)
def test_what_cannot_be_found_is_said(package, module, name, says):
    """A kernel that is not where it is said to be raises DeclarationError that says so."""
    with pytest.raises(DeclarationError, match=says):
        function_source(module.format(package.name), name)
