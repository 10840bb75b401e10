"""Make `build/view/jitd`: links that show the folders under their import names.

`PYTHONPATH=build/view` then runs everything uninstalled (a GPU machine without a network), and
type checkers, which do not follow an editable install's import hook, look there. The links are
relative, so that the tree can be copied.
"""

import os
import tomllib
from pathlib import Path


def make_view(root: Path) -> Path:
    """Create or refresh the view below `root` (the repository) and return `build/view`."""
    folders: dict[str, str] = tomllib.loads((root / "pyproject.toml").read_text())["tool"][
        "setuptools"
    ]["package-dir"]
    view = root / "build" / "view" / "jitd"
    view.mkdir(parents=True, exist_ok=True)
    for old in view.iterdir():
        if old.is_symlink():
            old.unlink()
    for name, folder in folders.items():
        inner = name.split(".")[1:]
        if inner:
            _link(view.joinpath(*inner), root / folder)
        else:  # the facade: its files, not the folder
            for file in (root / folder).iterdir():
                if file.is_file():
                    _link(view / file.name, file)
    return view.parent


def _link(link: Path, target: Path) -> None:
    link.symlink_to(os.path.relpath(target, link.parent))


if __name__ == "__main__":
    print(make_view(Path(__file__).resolve().parents[2]))
