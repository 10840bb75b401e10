"""A real cache below pytest's temporary folder, and real processes that share it."""

import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jitd.cache.keys import Key
from jitd.cache.paths import open_root
from jitd.cache.store import Store

WAIT_S = 30.0


class Child:
    """A fresh interpreter that runs `code`; it talks by lines and dies with the test."""

    def __init__(self, code: str, *arguments: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        """The next line it prints; a failure after `WAIT_S`."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], WAIT_S)
        assert ready, f"no line in {WAIT_S:g} s"
        return self.process.stdout.readline().strip()

    def say(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def exit_code(self) -> int:
        return self.process.wait(WAIT_S)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=WAIT_S)


@pytest.fixture
def spawn() -> Iterator[Callable[..., Child]]:
    """Starts a `Child`; all are killed at the end."""
    children: list[Child] = []

    def start(code: str, *arguments: object) -> Child:
        children.append(Child(code, *arguments))
        return children[-1]

    yield start
    for child in children:
        child.kill()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return open_root(tmp_path / "cache")


@pytest.fixture
def store(root: Path) -> Store:
    return Store(root)


@pytest.fixture
def key() -> Key:
    return Key.of("winner", "silu", dtype="bf16", shape=(1, 1024), aligned=True)


@pytest.fixture
def as_root() -> None:
    """Skips where the test cannot give files to another user."""
    if os.geteuid() != 0:
        pytest.skip("needs root: gives files to another user or becomes one")
