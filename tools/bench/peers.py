"""Peers: other implementations, named as `module:function`."""

import importlib
from collections.abc import Callable, Collection, Sequence
from typing import Any


class BadPeer(Exception):
    """A peer that cannot be found. The message is one line."""


def resolve_peer(text: str) -> Callable[..., Any]:
    """The function that `module:function` names. Raises BadPeer."""
    module_name, colon, name = text.partition(":")
    if not (module_name and colon and name):
        raise BadPeer(f"peer {text!r}: give module:function, like sglang_norm:group_norm_silu.")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise BadPeer(
            f"peer {text!r}: cannot import {module_name}: {type(error).__name__}: {error}. "
            "It is looked for in the current folder and on PYTHONPATH."
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        known = sorted(n for n, v in vars(module).items() if callable(v) and n[0] != "_")
        raise BadPeer(
            f"peer {text!r}: {module_name} has no function {name!r}; it has {', '.join(known)}."
        )
    found: Callable[..., Any] = function
    return found


def resolve_peers(texts: Sequence[str]) -> dict[str, Callable[..., Any]]:
    """The functions by the shortest names that tell them apart. Raises BadPeer."""
    short = [text.partition(":")[0].rpartition(".")[2] for text in texts]
    taken = {"jitd", "eager", "compile", "torch"}
    return {
        (text if short.count(name) > 1 or name in taken else name): resolve_peer(text)
        for text, name in zip(texts, short, strict=True)
    }


def resolve_op_peers(
    texts: Sequence[str], ops: Collection[str]
) -> dict[str, dict[str, Callable[..., Any]]]:
    """The peers of each op, given as `op=module:function`. Raises BadPeer."""
    named: dict[str, list[str]] = {}
    for text in texts:
        op, equals, peer = text.partition("=")
        if not equals or op not in ops:
            raise BadPeer(
                f"peer {text!r}: give op=module:function, where op is one of "
                f"{', '.join(sorted(ops))}."
            )
        named.setdefault(op, []).append(peer)
    return {op: resolve_peers(peers) for op, peers in named.items()}
