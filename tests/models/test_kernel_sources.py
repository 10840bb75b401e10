"""What must not stand in a kernel's source, whatever the interpreter says of it."""

import ast
from pathlib import Path

import jitd.models.kernels
import pytest

FOLDER = Path(jitd.models.kernels.__file__).parent


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_no_tuple_is_reduced_over_all_axes(path):
    """No kernel reduces with axis=None: Triton then reorders each tensor of a tuple by its own
    layout, and counts meet the means of other lanes (on a GPU only, not in the interpreter)."""
    for call in ast.walk(ast.parse(path.read_text())):
        if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("reduce"):
            axis = call.args[1]
            assert not (isinstance(axis, ast.Constant) and axis.value is None), ast.unparse(call)
