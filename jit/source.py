"""Digests of source code from its syntax tree: no import of the code, none of Triton.

A digest covers a function and what it reaches: other functions and constants of its module, and
through imports those of other modules. Comments, docstrings and line numbers do not count, so
that documenting a kernel compiles nothing anew.
"""

import ast
import copy
import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TypeAlias

from .errors import DeclarationError

# Not followed: covered by the toolchain's identity, or part of jitd's own machinery, whose
# meaning is versioned by the key schema rather than by its text.
_FOREIGN = {*sys.stdlib_module_names, "triton", "torch", "numpy", "cuda"}
_FACADE = "jitd"
_MACHINERY = ("jitd.jit", "jitd.cache", "jitd.autotune", "jitd.tools")


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel, as its `def` and its `@triton.jit(...)` declare it."""

    name: str
    constexpr: bool
    annotation: str | None  # a fixed type ("i64", "fp64"), if any
    specialize: bool  # integers: class ==1 / %16 / other goes into the binary key
    align: bool  # pointers and integers: divisibility by 16 goes into the binary key


@dataclass(frozen=True)
class FunctionSource:
    """What the syntax tree of a function says: digest (hex) and, in order, its parameters."""

    digest: str
    parameters: tuple[Parameter, ...]


def function_source(module: str, name: str) -> FunctionSource:
    """The digest and the parameters of `module.name`, read from its file.

    Remembered for as long as the files it reaches keep path, size and mtime.
    Raises DeclarationError if the module or the function cannot be found.
    """
    known = _remembered.get((module, name)) or memo.get(module, name, _locate(module))
    if known is None or any(_stamp(path) != stamp for path, stamp in known[1]):
        known = _read(module, name)
        memo.put(module, name, _locate(module), *known)
    _remembered[module, name] = known
    return known[0]


Files: TypeAlias = tuple[tuple[Path, tuple[int, int]], ...]
"""What a digest was computed from: each file with its size and mtime (ns)."""


class Memo:
    """Where digests outlast the process; this one forgets. `runtime` puts one beside the cache."""

    def get(self, module: str, name: str, path: Path) -> tuple[FunctionSource, Files] | None:
        return None

    def put(self, module: str, name: str, path: Path, source: FunctionSource, files: Files) -> None:
        return None


memo = Memo()
_remembered: dict[tuple[str, str], tuple[FunctionSource, Files]] = {}


def _read(module: str, name: str) -> tuple[FunctionSource, Files]:
    reached: dict[tuple[str, str], str] = {}
    files: dict[Path, tuple[int, int]] = {}
    _reach(module, name, reached, files)
    digest = hashlib.blake2b(digest_size=20)
    for (_, owner), text in sorted(reached.items(), key=lambda item: (item[0][1], item[1])):
        digest.update(f"{owner}\0{text}\0".encode())
    path = _locate(module)
    parsed = _parse(module, path, files[path])
    node = parsed.definitions[name][-1]
    if not isinstance(node, ast.FunctionDef):
        raise DeclarationError(f"{module}.{name} is not a function defined with `def`.")
    source = FunctionSource(digest.hexdigest(), tuple(_parameters(node, parsed, module)))
    return source, tuple(files.items())


@dataclass(frozen=True)
class _Module:
    definitions: dict[str, tuple[ast.stmt, ...]]  # every statement that binds or changes a name
    imports: dict[str, tuple[str, str | None]]  # local name -> (module, attribute or None)


def _reach(
    module: str,
    name: str,
    reached: dict[tuple[str, str], str],
    files: dict[Path, tuple[int, int]],
) -> None:
    """Collect the text of `module.name` and, through the names it uses, of what it reaches."""
    path = _locate(module)
    stamp = files[path] = _stamp(path)
    parsed = _parse(module, path, stamp)
    nodes = parsed.definitions.get(name)
    if nodes is None:
        if name in parsed.imports:  # re-exported from elsewhere
            _follow(*parsed.imports[name], reached, files)
            return
        raise DeclarationError(f"{module} defines no {name!r} (looked in {path}).")
    if (module, name) in reached:
        return
    stripped = ast.Module([_without_docstrings(node) for node in nodes], [])
    reached[module, name] = ast.unparse(stripped)
    for used in _names(stripped):
        if used in parsed.definitions:
            _reach(module, used, reached, files)
        elif used in parsed.imports:
            owner, attribute = parsed.imports[used]
            if attribute is not None:
                _follow(owner, attribute, reached, files)
            else:  # `import x as y` / `from . import y`: every attribute used on it
                for attr in _attributes(stripped, used):
                    _follow(owner, attr, reached, files)


def _follow(
    module: str,
    attribute: str | None,
    reached: dict[tuple[str, str], str],
    files: dict[Path, tuple[int, int]],
) -> None:
    if _is_foreign(module) or attribute is None:
        reached[module, attribute or ""] = f"import {module}.{attribute}"
    else:
        _reach(module, attribute, reached, files)


def _is_foreign(module: str) -> bool:
    return (
        module.partition(".")[0] in _FOREIGN or module == _FACADE or module.startswith(_MACHINERY)
    )


def _names(node: ast.AST) -> Iterator[str]:
    seen = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    yield from sorted(seen)


def _attributes(node: ast.AST, base: str) -> list[str]:
    return sorted(
        {
            n.attr
            for n in ast.walk(node)
            if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id == base
        }
    )


def _without_docstrings(node: ast.stmt) -> ast.stmt:
    """A copy of a statement whose functions have no docstrings."""
    node = copy.deepcopy(node)
    for function in ast.walk(node):
        if isinstance(function, ast.FunctionDef) and ast.get_docstring(function) is not None:
            function.body = function.body[1:] or [ast.Pass()]
    return node


@cache
def _locate(module: str) -> Path:
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError as error:
        raise DeclarationError(f"no module {module!r} to read source from: {error}.") from error
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        raise DeclarationError(f"module {module!r} has no Python source file to read.")
    return Path(spec.origin)


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=256)
def _parse(module: str, path: Path, stamp: tuple[int, int]) -> _Module:
    """The module-level definitions and imports of a file (`stamp` makes an edit a new entry)."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    definitions: dict[str, tuple[ast.stmt, ...]] = {}
    imports: dict[str, tuple[str, str | None]] = {}
    for node in ast.parse(path.read_text(encoding="utf-8"), filename=str(path)).body:
        for name in _bound(node):
            definitions[name] = (*definitions.get(name, ()), node)
        for inner in ast.walk(node) if isinstance(node, ast.If | ast.Try) else [node]:
            if isinstance(inner, ast.Import | ast.ImportFrom):
                imports |= _imported(inner, package)
    return _Module(definitions, imports)


def _bound(node: ast.stmt) -> set[str]:
    """The names that a module-level statement defines, assigns or changes, imports excepted.

    Of an `if` or a `try`, those of all its branches: which one runs is part of their meaning.
    """
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}
    if isinstance(node, ast.If | ast.Try | ast.With):
        inner = [n for n in ast.iter_child_nodes(node) if isinstance(n, ast.stmt)]
        inner += [n for h in getattr(node, "handlers", []) for n in h.body]
        return {name for n in inner for name in _bound(n)}
    return set()


def _imported(node: ast.Import | ast.ImportFrom, package: str) -> dict[str, tuple[str, str | None]]:
    """Local name -> (module, attribute), or (module, None) where the name is a module."""
    found: dict[str, tuple[str, str | None]] = {}
    if isinstance(node, ast.Import):
        for alias in node.names:
            bound = alias.asname or alias.name.partition(".")[0]
            found[bound] = (alias.name if alias.asname else bound, None)
        return found
    owner = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
    for alias in node.names:
        inner = f"{owner}.{alias.name}"
        found[alias.asname or alias.name] = (
            (inner, None) if _is_module(inner) else (owner, alias.name)
        )
    return found


def _is_module(name: str) -> bool:
    if _is_foreign(name):
        return False
    try:
        # find_spec imports what is above the module: fine for a package, not for a module of
        # kernels, of which `name` would only be an attribute.
        above = importlib.util.find_spec(name.rpartition(".")[0])
        if above is None or above.submodule_search_locations is None:
            return False
        return importlib.util.find_spec(name) is not None
    except (ModuleNotFoundError, ValueError):
        return False


def _parameters(node: ast.FunctionDef, parsed: _Module, module: str) -> Iterator[Parameter]:
    plain, unaligned = _unspecialised(node, parsed, module)
    for index, arg in enumerate([*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]):
        annotation = ast.unparse(arg.annotation) if arg.annotation else None
        yield Parameter(
            name=arg.arg,
            constexpr=bool(annotation and annotation.rpartition(".")[2] == "constexpr"),
            annotation=_fixed_type(annotation),
            specialize=arg.arg not in plain and index not in plain,
            align=not {arg.arg, index} & (plain | unaligned),
        )


def _fixed_type(annotation: str | None) -> str | None:
    """`tl.int64` -> "i64": the annotations by which Triton fixes an argument's type."""
    if annotation is None:
        return None
    word = annotation.strip("'\"").rpartition(".")[2]
    named = {"int1": "i1", "float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}
    named |= {f"int{n}": f"i{n}" for n in (8, 16, 32, 64)}
    named |= {f"uint{n}": f"u{n}" for n in (8, 16, 32, 64)} | {"float64": "fp64"}
    return named.get(word, word if word in named.values() else None)


def _unspecialised(
    node: ast.FunctionDef, parsed: _Module, module: str
) -> tuple[set[str | int], set[str | int]]:
    """The names or indices in do_not_specialize and in do_not_specialize_on_alignment."""
    found: dict[str, set[str | int]] = {}
    for decorator in node.decorator_list:
        if not isinstance(decorator, ast.Call):
            continue
        for keyword in decorator.keywords:
            if keyword.arg in ("do_not_specialize", "do_not_specialize_on_alignment"):
                try:
                    found[keyword.arg] = set(_literal(keyword.value, parsed))
                except ValueError:
                    raise DeclarationError(
                        f"{module}.{node.name}: {keyword.arg} must be a list of literals and of "
                        "constants of its module, since jitd reads it without importing that."
                    ) from None
    return found.get("do_not_specialize", set()), found.get("do_not_specialize_on_alignment", set())


def _literal(node: ast.expr, parsed: _Module) -> list[str | int]:
    """The value of `["a", *NAMES]`, NAMES being a list of literals in the module."""
    if isinstance(node, ast.Name):
        definition = parsed.definitions.get(node.id, (None,))[-1]
        if isinstance(definition, ast.Assign | ast.AnnAssign) and definition.value is not None:
            return _literal(definition.value, parsed)
        raise ValueError(node.id)
    if isinstance(node, ast.List | ast.Tuple):
        items: list[str | int] = []
        for item in node.elts:
            if isinstance(item, ast.Starred):
                items += _literal(item.value, parsed)
            else:
                items.append(ast.literal_eval(item))
        return items
    raise ValueError(ast.dump(node))
