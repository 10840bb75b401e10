"""The identity of Triton: without importing it, and different where code would be."""

import subprocess
import sys

import pytest
from jitd.jit.toolchain import digest_of, toolchain


@pytest.mark.compiler
def test_it_names_the_version_without_importing_triton():
    """Version and a digest of what is installed, the same in each process, Triton not imported."""
    code = (
        "import sys; from jitd.jit.toolchain import toolchain\n"
        "print(toolchain()); print('triton' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    text, imported = done.stdout.splitlines()
    assert imported == "False"
    assert text == toolchain()
    version, _, digest = text.partition("+")
    assert version[0].isdigit() and len(digest) == 16


@pytest.mark.parametrize("flag", ["TRITON_PTXAS_PATH", "DISABLE_PTXAS_OPT", "PTXAS_OPTIONS"])
def test_what_changes_code_changes_it(monkeypatch, flag):
    """Another ptxas and flags that change code are part of the identity."""
    before = toolchain()
    monkeypatch.setenv(flag, "1")
    assert toolchain() != before


def test_another_ptxas_of_the_same_name_is_another(monkeypatch, tmp_path):
    """An override that names a file counts with the file's size and time."""
    ptxas = tmp_path / "ptxas"
    ptxas.write_text("one")
    monkeypatch.setenv("TRITON_PTXAS_PATH", str(ptxas))
    before = toolchain()
    ptxas.write_text("another")
    assert toolchain() != before


def test_what_changes_no_code_does_not(monkeypatch):
    """Where Triton caches or prints is no part of it."""
    before = toolchain()
    monkeypatch.setenv("TRITON_CACHE_DIR", "/elsewhere")
    monkeypatch.setenv("TRITON_PRINT_AUTOTUNING", "1")
    assert toolchain() == before


WHEEL = "triton/_C/libtriton.so,sha256=aa,9\ntriton/backends/nvidia/bin/ptxas,sha256=bb,8\n"
BY_PIP = (
    "../../../bin/proton,sha256=cc,225\n"
    "triton-3.9.0.dist-info/INSTALLER,sha256=dd,4\n"
    "triton-3.9.0.dist-info/RECORD,,\n"
    "triton/__pycache__/__init__.cpython-311.pyc,,\n"
)


def test_where_and_how_it_was_installed_does_not_matter():
    """One wheel is one toolchain in every environment: binaries can be carried between them."""
    assert digest_of(BY_PIP + WHEEL) == digest_of(WHEEL) != digest_of("")


@pytest.mark.parametrize("name", ["libtriton.so,sha256=aa", "ptxas,sha256=bb"])
def test_another_library_is_another_toolchain(name):
    """The hash of each library of the wheel counts."""
    assert digest_of(WHEEL.replace(name, f"{name}x")) != digest_of(WHEEL)
