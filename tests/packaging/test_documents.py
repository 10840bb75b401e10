"""What the documents say is so."""

import os
import re
import subprocess
import sys

import pytest
from jitd.jit.settings import MODES, table

from .checkout import ROOT, SETUPTOOLS

README = (ROOT / "README.md").read_text(encoding="utf-8")


def rows(heading):
    """The first column of the table under a heading of the README."""
    text = README.partition(f"\n## {heading}")[2].partition("\n## ")[0]
    return re.findall(r"^\| `(\w+)`", text, re.MULTILINE)


def test_every_setting_has_its_row():
    """The README's table names the settings that there are."""
    assert sorted(rows("Settings")) == sorted(variable for variable, *_ in table({}))


def test_every_mode_has_its_row():
    """The README's table names the modes that there are."""
    assert sorted(rows("Modes")) == sorted(MODES)


def test_ci_runs_the_readmes_test_command():
    """The command that the README gives for the tests is the line that CI looks for and runs."""
    command = "python -m tools.check tests"
    assert f"\n{command}\n" in README
    assert f"grep -m 1 -x '{command}' README.md" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize(
    "document", ["README.md", "ARCHITECTURE.md", "BENCHMARKS.md", "CONTRIBUTING.md", "SECURITY.md"]
)
def test_links_lead_somewhere(document):
    """Each link to a file of the project leads to one."""
    text = (ROOT / document).read_text(encoding="utf-8")
    targets = re.findall(r"\]\((\w[\w/-]*\.\w+|LICENSE)\)", text)
    assert [t for t in targets if not (ROOT / t).exists()] == []


def test_the_example_of_an_op_works(tmp_path):
    """The README's package of an op and its kernel, written down as it is, declares and answers."""
    example = README.partition("### An op of your own")[2].partition("\n## ")[0]
    package = tmp_path / "mypackage"
    package.mkdir()
    for block in re.findall(r"```python\n(.*?)```", example, re.DOTALL):
        name = re.match(r"# mypackage/(\w+\.py)\n", block)
        assert name, "each block begins with its file's name"
        (package / name[1]).write_text(block, encoding="utf-8")
    (package / "__init__.py").touch()
    code = (
        "import jitd, torch\n"
        "from jitd.jit.device import stand_in\n"
        "from mypackage.ops import scale\n"
        "assert scale(torch.ones(4), 3.0).tolist() == [3.0] * 4\n"
        "call = scale.op.parse('scale[bf16](4096)').call\n"
        "plan = scale.op.default(call, stand_in('sm_90')).plan(call, stand_in('sm_90'))\n"
        "from jitd.jit.binary import binary_of\n"
        "specs = {**call.tensors, **plan.outputs}\n"
        "print(binary_of(plan.launches[0], specs, 'sm_90', ''))"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        timeout=120,
        check=False,
    )
    assert done.stdout == "scale_kernel for sm_90\n", done.stderr


def test_the_architecture_names_every_part():
    """ARCHITECTURE.md has a row for each part of jitd."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    parts = {name for name in SETUPTOOLS["package-dir"]}
    assert [name for name in sorted(parts) if f"| `{name}` |" not in text] == []


def test_the_licence_is_whole():
    """LICENSE is the Apache License 2.0 in full."""
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text
