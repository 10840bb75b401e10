"""The checkout as its files say it is: folders, import names and imports, without running any."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]
FOLDERS: dict[str, str] = SETUPTOOLS["package-dir"]
FACADE = "jit/api"


def package_of(folder: Path) -> str:
    """The import name of a folder of the checkout: `jit/daemon` -> `jitd.jit.daemon`."""
    parts = folder.relative_to(ROOT).parts
    if "/".join(parts) == FACADE:
        return "jitd"
    return ".".join(("jitd", *parts))


def folders_with_code() -> list[Path]:
    """Every folder below the packages' own that holds a Python file."""
    tops = [ROOT / folder for folder in FOLDERS.values() if folder != FACADE]
    found = {path.parent for top in tops for path in top.rglob("*.py")}
    return sorted(folder for folder in found if "__pycache__" not in folder.parts)


def modules() -> Iterator[tuple[str, Path]]:
    """(import name, file) of every module of jitd."""
    for folder in folders_with_code():
        for file in sorted(folder.glob("*.py")):
            package = package_of(folder)
            yield package if file.stem == "__init__" else f"{package}.{file.stem}", file


def imports(module: str, file: Path, *, module_level: bool = False) -> Iterator[tuple[int, str]]:
    """(line, what) of each import in a file; `from a import b` gives both a and a.b.

    With `module_level`, only those that importing the module carries out.
    """
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    tree = ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
    for node in _executed(tree) if module_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            parts = [*(above if node.level else []), *([node.module] if node.module else [])]
            owner = ".".join(parts)
            yield node.lineno, owner
            yield from ((node.lineno, f"{owner}.{alias.name}") for alias in node.names)


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """What runs when a module is imported: no function bodies, nothing for type checkers only."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _executed(child)
