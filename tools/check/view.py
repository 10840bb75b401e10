"""Make `build/view/jitd`: links that show the folders under their import names.

`PYTHONPATH=build/view` then runs everything uninstalled (a GPU machine without a network), and
type checkers, which do not follow an editable install's import hook, look there. The links are
relative, so that the tree can be copied.
"""

import os
import tomllib
from pathlib import Path


def make_view(root: Path) -> Path:
    """Create or refresh the view below `root` (the repository) and return `build/view`.

    Links that are right stay as they are, so that a process which runs from the view notices
    nothing.
    """
    wanted = _links(root)
    view = root / "build" / "view" / "jitd"
    view.mkdir(parents=True, exist_ok=True)
    for old in view.iterdir():
        if old.is_symlink() and old.name not in wanted:
            old.unlink()
    for name, target in wanted.items():
        text = os.path.relpath(target, view)
        link = view / name
        if not link.is_symlink() or str(link.readlink()) != text:
            link.unlink(missing_ok=True)
            link.symlink_to(text)
    return view.parent


def _links(root: Path) -> dict[str, Path]:
    """What is to be seen in the view: name -> folder or file of the checkout."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    folders: dict[str, str] = project["tool"]["setuptools"]["package-dir"]
    links: dict[str, Path] = {}
    for name, folder in folders.items():
        inner = name.partition(".")[2]
        if inner:
            links[inner] = root / folder
        else:  # the facade: its files, not the folder
            links |= {file.name: file for file in (root / folder).iterdir() if file.is_file()}
    return links


if __name__ == "__main__":
    print(make_view(Path(__file__).resolve().parents[2]))
