"""`show --plot`: the landscape as a picture."""

import re
import xml.etree.ElementTree as ET

import pytest

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def drawn(cli, put_winner, tmp_path):
    """Draws the landscape of a winner as SVG: its texts and its elements by id."""
    pytest.importorskip("matplotlib")

    def draw(*options, **more):
        put_winner("scale", "scale[bf16](64)", us=2.0, **more)
        path = tmp_path / "land.svg"
        result = cli.run("show", "scale", "--plot", str(path), *options)
        assert result.code == 0, result.err
        root = ET.parse(path).getroot()
        texts = ["".join(text.itertext()).strip() for text in root.iter(f"{SVG}text")]
        return texts, {element.get("id"): element for element in root.iter() if element.get("id")}

    return draw


def test_heat_map(drawn):
    """Title, card, axes; each cell's time or what became of it; the winner starred and outlined."""
    texts, elements = drawn()
    assert "scale[bf16](64)" in texts
    assert any(text.startswith("NVIDIA Test") and "BLOCK=64" in text for text in texts)
    assert {"BLOCK", "num_warps", "32", "64", "128", "4", "8", "16"} <= set(texts)
    assert [t for t in texts if t.endswith("2.00")] == ["\N{BLACK STAR} 2.00"]
    assert {"3.00", "6.00", "wrong", "failed", "dropped"} <= set(texts)
    hatches = [e for e in elements.values() if e.tag == f"{SVG}pattern"]
    assert len(hatches) == 2  # wrong and failed; what was dropped is plain
    assert "winner" in elements


def test_colours_are_times(drawn, outcome):
    """Equal times have equal colours, other times others; what was not timed has none of them."""
    points = [
        outcome({"BLOCK": block, "num_warps": warps}, us=us)
        for block, warps, us in ((64, 4, 2.0), (64, 8, 4.0), (128, 4, 4.0), (128, 8, 8.0))
    ]
    points.append(outcome({"BLOCK": 32, "num_warps": 4}, status="wrong"))
    _, elements = drawn(outcomes=points, dropped={})
    (axes,) = [elements[name] for name in elements if name == "axes_1"]
    fills = re.findall(r"fill: (#[0-9a-f]{6})", ET.tostring(axes).decode())
    two, four_a, four_b, eight, wrong = [fill for fill in fills if fill != "#ffffff"][:5]
    assert four_a == four_b
    assert len({two, four_a, eight, wrong}) == 4


def test_a_panel_for_each_variant(drawn, outcome):
    """Two variants that were timed are two panels, and the axes asked for are theirs."""
    points = [
        outcome({"BLOCK": 64, "num_warps": 4}, us=2.0),
        outcome({"CH": 3, "ACROSS": 5, "num_warps": 4}, us=3.0, variant="split"),
    ]
    texts, _ = drawn(outcomes=points)
    assert {"plain: us", "split: us", "BLOCK", "CH"} <= set(texts)


def test_axes_asked_for(drawn):
    """--x and --y choose the axes."""
    texts, _ = drawn("--x", "num_warps", "--y", "BLOCK")
    assert texts.index("num_warps") < texts.index("BLOCK")


def test_png(cli, put_winner, tmp_path):
    """A .png is a picture of some size; the table is printed all the same."""
    pytest.importorskip("matplotlib")
    put_winner("scale", "scale[bf16](64)", us=2.0)
    path = tmp_path / "land.PNG"
    result = cli.run("show", "scale", "--plot", str(path))
    assert result.code == 0, result.err
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    assert width > 800 and height > 400
    assert "Dropped before compiling" in result.out
    assert str(path) in result.lines[-1]


def test_the_same_landscape_is_the_same_file(drawn, cli, tmp_path):
    """Drawn twice it is equal to the byte: no date, no random ids."""
    drawn()
    again = tmp_path / "again.svg"
    assert cli.run("show", "scale", "--plot", str(again)).code == 0
    assert again.read_bytes() == (tmp_path / "land.svg").read_bytes()


def test_several_winners_of_a_signature(cli, put_winner, tmp_path):
    """Of the winners of several cards the newest is drawn, and that is said."""
    pytest.importorskip("matplotlib")
    for device in ("NVIDIA Old", "NVIDIA New"):
        put_winner("scale", "scale[bf16](64)", device=device)
    result = cli.run("show", "scale", "--plot", str(tmp_path / "land.svg"))
    assert "the newest of 2 winners, on NVIDIA New" in result.lines[-1]
    assert "NVIDIA New" in (tmp_path / "land.svg").read_text()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--plot", "{}/land.pdf"], ".png or .svg"),
        (["--plot", "{}/land"], ".png or .svg"),
        (["--x", "BLOCK"], "--plot"),
    ],
    ids=["pdf", "nothing", "x"],
)
def test_wrong_plots(cli, put_winner, tmp_path, options, words):
    """Another kind of file, or axes of no picture, is wrong usage that says what is allowed."""
    put_winner("scale", "scale[bf16](64)")
    options = [option.format(tmp_path) for option in options]
    assert words in cli.refused("show", "scale", *options, code=2)
    assert list(tmp_path.glob("land*")) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--x", "BLOK"], "BLOCK, num_warps"), (["--y", "BLOCK", "--x", "BLOCK"], "different")],
    ids=["unknown", "twice"],
)
def test_wrong_axes(cli, put_winner, tmp_path, options, words):
    """An axis that is not there is wrong usage that names those there are; nothing is written."""
    pytest.importorskip("matplotlib")
    put_winner("scale", "scale[bf16](64)")
    path = tmp_path / "land.svg"
    assert words in cli.refused("show", "scale", "--plot", str(path), *options, code=2)
    assert not path.exists()


def test_a_folder_that_is_not_there(cli, put_winner, tmp_path):
    """A file that cannot be written is a failure with its name and the system's reason."""
    pytest.importorskip("matplotlib")
    put_winner("scale", "scale[bf16](64)")
    path = tmp_path / "nowhere" / "land.svg"
    message = cli.refused("show", "scale", "--plot", str(path), code=1)
    assert f"{path}: No such file or directory" in message


def test_without_matplotlib(cli, put_winner, tmp_path):
    """Where matplotlib is missing, one line says how to get it; the table alone needs none."""
    put_winner("scale", "scale[bf16](64)")
    missing = tmp_path / "missing" / "matplotlib"
    missing.mkdir(parents=True)
    (missing / "__init__.py").write_text("raise ImportError('No module named matplotlib')")
    cli.path.insert(0, str(missing.parent))
    message = cli.refused("show", "scale", "--plot", str(tmp_path / "land.svg"), code=1)
    assert "pip install 'jitd[plot]'" in message
    assert cli.run("show", "scale").code == 0
