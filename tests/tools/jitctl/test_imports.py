"""What the cache alone can answer starts neither torch nor Triton."""

import pytest

HEAVY = {"torch", "triton", "numpy", "rich", "filelock", "matplotlib"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["list"],
        ["list", "--kind", "artifact", "--json"],
        ["show", "scale[bf16](64)", "--top", "3"],
        ["clear-cache", "--dry-run"],
        ["clear-cache", "--op", "scale", "--yes"],
        ["gc", "--dry-run"],
        ["stats"],
        ["verify"],
        ["why", "--help"],
        ["env"],
        ["--version"],
        ["--help"],
        ["warmup", "--help"],
        ["tune", "--help"],
    ],
    ids=" ".join,
)
def test_light_commands(cli, put_winner, arguments):
    """Listing, showing, clearing and help import no torch, no Triton and nothing else large."""
    put_winner("scale", "scale[bf16](64)")
    result = cli.run(*arguments, imports=True)
    assert result.code == 0, result.err[-2000:]
    assert "jitd.tools.jitctl.cli" in result.imported
    assert not HEAVY & result.imported
