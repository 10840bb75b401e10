"""Every command explains itself, and its examples are right."""

import re
import shlex

import pytest
from jitd.tools.jitctl.cli import app

COMMANDS = [command.name for command in app.registered_commands]


def test_all_commands_are_listed(cli):
    """`jitctl --help` names every command, and `jitctl` alone shows the same as wrong usage."""
    result = cli.run("--help")
    assert result.code == 0
    assert all(re.search(rf"^  {name} ", result.out, re.MULTILINE) for name in COMMANDS)
    alone = cli.run()
    assert (alone.code, alone.err) == (2, result.out)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example(cli, name):
    """The help of each command has an example, with options that it has, --json among them."""
    result = cli.run(name, "--help")
    assert result.code == 0
    examples = re.findall(rf"^ +(jitctl {name}.*)$", result.out, re.MULTILINE)
    assert examples
    assert "--json" in result.out
    for example in examples:
        options = [word for word in shlex.split(example) if word.startswith("--")]
        assert all(re.search(rf"{word}\b", result.out.split("Options:")[1]) for word in options)
