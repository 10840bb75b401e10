"""Nothing that jitd reads can become code that it runs (SECURITY.md), by the syntax tree."""

import ast

import pytest

from .checkout import ROOT, imports, modules

ALL = dict(modules())
LOADERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
LOADERS |= {"yaml", "dbm", "code", "runpy", "imp", "zipimport"}

# Calls that turn text into code or a name into a module, and why each is no danger.
ALLOWED = {
    ("jit/guard.py", "exec"): "text made of the arguments that an op declares",
    ("jit/guard.py", "compile"): "the same",
    ("jit/interpret.py", "import_module"): "the module of a declared kernel",
    ("jit/worker.py", "import_module"): "the module of a declared kernel, named by the parent",
    ("jit/daemon/worker.py", "import_module"): "the module of a declared op, named by a client",
    ("jit/task.py", "import_module"): "the module of a declared op, named by the parent",
    ("jit/api/__init__.py", "import_module"): "a table of jitd's own modules",
    ("models/catalog.py", "import_module"): "the modules of jitd's own folder of ops",
    ("models/helios/__init__.py", "import_module"): "a table of jitd's own modules",
    ("models/ltx2/__init__.py", "import_module"): "a table of jitd's own modules",
    ("models/patch/__init__.py", "import_module"): "a table of jitd's own modules",
    ("models/patch/recipe.py", "import_module"): "the modules of diffusers that recipes name",
    ("models/zimage/__init__.py", "import_module"): "a table of jitd's own modules",
    ("tools/jitctl/wanted.py", "import_module"): "what --import names on the command line",
    ("tools/bench/tune.py", "import_module"): "a table of jitd's own modules",
    ("tools/bench/peers.py", "import_module"): "a table of the peers that are measured",
}
CALLS = {"eval", "exec", "compile", "__import__", "import_module", "exec_module", "load_module"}
METHODS = CALLS - {"eval", "compile"}  # module.eval(), re.compile() are something else


def test_no_loader_that_runs_code():
    """No module of jitd imports pickle or another format in which data is code."""
    found = [
        f"{file}:{line}: {name}"
        for module, file in ALL.items()
        for line, name in imports(module, file)
        if name.partition(".")[0] in LOADERS
    ]
    assert found == []


def calls(file):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        match node:
            case ast.Call(func=ast.Name(id=name)) if name in CALLS:
                yield name
            case ast.Call(func=ast.Attribute(attr=name)) if name in METHODS:
                yield name


@pytest.mark.parametrize("part", ["cache", "autotune", "jit", "models", "tools"])
def test_text_becomes_code_only_where_it_is_known(part):
    """Each call that makes code of text or a module of a name is one that was looked at."""
    found = {
        (str(file.relative_to(ROOT)), name)
        for file in ALL.values()
        if file.relative_to(ROOT).parts[0] == part
        for name in calls(file)
    }
    assert found == {place for place in ALLOWED if place[0].startswith(f"{part}/")}


def test_torch_loads_no_pickle():
    """torch.load, numpy.load and msgpack's hooks for types of one's own are not used."""
    wrong = ("torch.load(", "np.load(", "numpy.load(", "allow_pickle", "object_hook")
    found = [
        f"{file}: {word}"
        for file in ALL.values()
        for word in wrong
        if word in file.read_text(encoding="utf-8")
    ]
    assert found == []
