"""What is packed: a folder that is forgotten works in an editable install and breaks the wheel."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import jitd
import pytest

from .checkout import FACADE, FOLDERS, PROJECT, ROOT, SETUPTOOLS, folders_with_code, package_of


def test_every_folder_with_code_is_packed():
    """The list of packages is exactly the folders that hold Python files."""
    assert sorted(map(package_of, folders_with_code())) == sorted(SETUPTOOLS["packages"])


def test_every_package_has_an_init():
    """No package is a namespace package, which setuptools would pack and mypy would not check."""
    assert [f for f in folders_with_code() if not (f / "__init__.py").exists()] == []


@pytest.mark.parametrize("package", SETUPTOOLS["packages"])
def test_what_is_installed_is_the_checkout(package):
    """Each package, as it is imported, has the modules that the checkout has, and no others."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations
    [installed] = {Path(place).resolve() for place in spec.submodule_search_locations}
    [folder] = [f for f in folders_with_code() if package_of(f) == package]
    if package == "jitd":  # shown as links where it is not installed
        installed = Path(str(spec.origin)).resolve().parent
    assert {f.name for f in installed.glob("*.py")} == {f.name for f in folder.glob("*.py")}
    assert all((installed / f.name).read_bytes() == f.read_bytes() for f in folder.glob("*.py")), (
        "the installed jitd is another version than this checkout; install it again"
    )


def test_type_checkers_are_told():
    """The marker by which type checkers use the annotations of an installed jitd is there."""
    assert Path(str(jitd.__file__)).with_name("py.typed").exists()
    assert (ROOT / FOLDERS["jitd"] / "py.typed").exists()
    assert SETUPTOOLS["package-data"]["jitd"] == ["py.typed"]


def test_one_version():
    """pyproject.toml and the facade name the same version."""
    assert jitd.__version__ == PROJECT["project"]["version"]


def test_the_facade_is_not_imported_twice():
    """`jitd.jit.api`, which an editable install could find, refuses to be imported."""
    code = (
        "import importlib.util as u, pathlib, sys, jitd\n"
        "spec = u.spec_from_file_location('jitd.jit.api', jitd.__file__)\n"
        "spec.loader.exec_module(u.module_from_spec(spec))"
    )
    done = _python(code)
    assert done.returncode != 0
    assert done.stderr.strip().endswith("ImportError: import jitd")


def test_the_ignored_files_are_not_ours():
    """No pattern of .gitignore catches a folder of the checkout, such as `cache/`."""
    folders = [folder for folder in FOLDERS.values() if folder != FACADE] + ["tests"]
    files = [str(f.relative_to(ROOT)) for top in folders for f in (ROOT / top).rglob("*.py")]
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout: no .git")
    done = subprocess.run(
        ["git", "check-ignore", "--no-index", "--stdin"],
        input="\n".join(files),
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1, f"ignored: {done.stdout} {done.stderr}"


def test_the_command_is_installed():
    """The console script names a function that exists."""
    module, _, name = PROJECT["project"]["scripts"]["jitctl"].partition(":")
    done = _python(f"from {module} import {name}; assert callable({name})")
    assert done.returncode == 0, done.stderr


def test_cuda_is_there_without_extras():
    """The plain dependencies bring `cuda.core` and the driver's bindings, GPU or not."""
    assert not [d for d in PROJECT["project"]["dependencies"] if re.match(r"cuda-\w+\[", d)]
    done = _python("import cuda.core; from cuda.bindings import driver; driver.cuLaunchKernelEx")
    assert done.returncode == 0, done.stderr


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
