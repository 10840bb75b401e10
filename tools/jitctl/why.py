"""`jitctl why`: why a signature is not served from the cache."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import typer

from ...autotune.policy import Policy
from ...cache.errors import JitdError
from ...cache.keys import Absent, Key, Value, difference
from ...cache.records import Header
from ...cache.store import Store
from ...jit.declare import Device
from ...jit.device import devices, stand_in
from ...jit.settings import Settings
from ...jit.toolchain import toolchain
from . import folder
from .options import AsJson, Imports
from .output import say, say_json, table

_OF_THE_DEVICE = ("device", "memory_bytes", "sm_count")


@dataclass(frozen=True)
class Answer:
    """Why a signature is or is not served on one device (None: no device is known).

    `parts` gives (name, stored, here) of each part of the key that differs from that of `nearest`.
    """

    device: str | None
    ready: bool
    text: str
    nearest: Header | None = None
    parts: tuple[tuple[str, object, object], ...] = ()
    not_compared: tuple[str, ...] = ()


def why(
    signature: Annotated[str, typer.Argument(help="A printed signature.", metavar="SIGNATURE")],
    device_name: Annotated[
        str | None,
        typer.Option(
            help="A card that is here, or one that something was tuned on. Default: those here.",
            metavar="NAME",
        ),
    ] = None,
    imports: Imports = None,
    as_json: AsJson = False,
) -> None:
    """Say why a signature is not served: which part of its key differs from the nearest winner's.

    The key of a winner has parts: problem (the bucket), op_version, device, sm_count, memory_bytes,
    toolchain, policy. If the winner is there, it says whether the binary and its check are, too.
    Without a GPU and --device-name, the parts that name the card are not compared.

    \b
    Examples:
      jitctl why 'group_norm_silu[bf16](1x1024x24576, groups=32)'
      jitctl why 'group_norm_silu[bf16](1x1024x24576, groups=32)' --device-name 'NVIDIA H200' --json
    """
    settings = Settings.read()
    store = folder.open_for_reading(folder.cache_dir(settings), settings.cache_path)
    op = signature.partition("[")[0]
    winners = list(store.headers("winner")) if store else []
    of_op = [header for header in winners if header.op == op]
    cards: Sequence[Device | None] = _cards(device_name, winners) or (None,)
    from .wanted import declare_ops, read_signature  # noqa: PLC0415  (with torch, seconds)

    declare_ops(imports or ())
    asked = read_signature(signature)
    answers = [_answer(store, settings, asked, card, of_op) for card in cards]
    if as_json:
        say_json({"signature": signature, "answers": [_document(one) for one in answers]})
        return
    for answer in answers:
        _print(answer)


def _answer(
    store: Store | None,
    settings: Settings,
    asked: Any,
    card: Device | None,
    winners: Sequence[Header],
) -> Answer:
    from ...jit.op import OPS  # noqa: PLC0415  (declared by now)

    op, call = OPS[asked.op], asked.call
    name = card.name if card else None
    problem = op.sign(op.bucket(call)).text
    here: dict[str, Value] = {
        "op_version": op.version,
        "problem": problem,
        "toolchain": toolchain(),
        "policy": Policy().identity(),
    }
    if card is not None and store is not None:
        here |= {
            "device": card.name,
            "sm_count": card.sm_count,
            "memory_bytes": card.memory_bytes,
        }
        key = Key.of("winner", op.name, **here)
        if any(header.key == key for header in winners):
            return _served(store, settings, asked, card)
    if not winners:
        return Answer(name, ready=False, text=f"nothing is tuned for {op.name}")
    compared = [(header, *_compared(header, here)) for header in winners]
    nearest, parts, rest = min(compared, key=lambda one: _distance(one[0], one[1]))
    if not parts:
        text = f"a winner for {problem} is stored, and nothing that could be compared differs"
    else:
        text = f"no winner for {problem} is stored under this key"
    return Answer(name, ready=False, text=text, nearest=nearest, parts=parts, not_compared=rest)


def _served(store: Store, settings: Settings, asked: Any, card: Device) -> Answer:
    """The winner is stored: what of the rest is missing."""
    from ...jit.op import OPS  # noqa: PLC0415
    from ...jit.runtime import builder_of  # noqa: PLC0415

    def pool() -> Any:
        raise JitdError("jitctl why compiles nothing")

    op, call = OPS[asked.op], asked.call
    builder = builder_of(store, card, settings, pool)
    if builder.winner(op, call) is None:
        text = "a winner is stored, but the code that won was changed since, or cannot be read"
        return Answer(card.name, ready=False, text=text)
    if builder.look_up(op, call, "strict") is not None:
        text = f"it is ready: {builder.winner(op, call)}, with its binaries and their check"
        return Answer(card.name, ready=True, text=text)
    return Answer(card.name, ready=False, text=builder.explain(op, call))


def _cards(name: str | None, winners: Sequence[Header]) -> list[Device]:
    """The cards asked for. Raises ValueError for a name that neither is here nor has a winner."""
    here = list({card.name: card for card in devices()}.values())
    if name is None:
        return here
    found = [card for card in here if card.name == name]
    for header in winners:
        parts = dict(header.parts)
        target = header.meta.get("target")
        if not found and parts.get("device") == name and isinstance(target, str):
            found.append(
                replace(
                    stand_in(target),
                    name=name,
                    sm_count=parts.get("sm_count", 0),
                    memory_bytes=parts.get("memory_bytes", 0),
                )
            )
    if not found:
        known = {str(dict(header.parts).get("device")) for header in winners}
        known |= {card.name for card in here}
        raise ValueError(
            f"--device-name {name!r}: not here, and nothing was tuned on it. Known are: "
            f"{', '.join(sorted(known)) or 'none'}."
        )
    return found


def _compared(
    header: Header, here: Mapping[str, Value]
) -> tuple[tuple[tuple[str, object, object], ...], tuple[str, ...]]:
    """(the parts that differ, the names of those that cannot be compared)."""
    stored = dict(header.parts)
    rest = tuple(name for name in _OF_THE_DEVICE if name in stored and name not in here)
    key = Key.of("winner", header.op, **{**{name: stored[name] for name in rest}, **here})
    return tuple(difference(header.key, key)), rest


def _distance(
    header: Header, parts: Sequence[tuple[str, object, object]]
) -> tuple[bool, int, float, str]:
    """A winner for the same problem is nearer than any other; then count the parts."""
    names = [name for name, *_ in parts]
    return "problem" in names, len(names), -header.created, header.path


def _print(answer: Answer) -> None:
    where = f"on {answer.device}" if answer.device else "no GPU is here"
    say(f"{answer.text} ({where})")
    if answer.nearest is None:
        return
    device = answer.nearest.meta.get("device", "an unknown card")
    say(f"Nearest: {answer.nearest.label}, tuned on {device}")
    if answer.parts:
        rows = [(name, *_shown(stored, here)) for name, stored, here in answer.parts]
        table(("part", "stored", "here"), rows)
    if answer.not_compared:
        say(f"Not compared: {', '.join(answer.not_compared)}. Name a card: --device-name")


def _shown(stored: object, here: object) -> tuple[str, str]:
    """Two values for people; of two tuples, what differs in them."""
    if isinstance(stored, tuple) and isinstance(here, tuple):
        only = [item for item in stored if item not in here]
        other = [item for item in here if item not in stored]
        return _joined(only), _joined(other)
    return str(stored), str(here)


def _joined(items: Sequence[object]) -> str:
    texts = (
        f"{item[0]}={item[1]}" if isinstance(item, tuple) and item[1:] else str(item)
        for item in items
    )
    return ", ".join(texts) or "-"


def _document(answer: Answer) -> dict[str, Any]:
    nearest = answer.nearest
    return {
        "device": answer.device,
        "ready": answer.ready,
        "text": answer.text,
        "nearest": nearest and {"signature": nearest.label, "path": nearest.path, **nearest.meta},
        "differences": [
            {"part": name, "stored": _plain(stored), "here": _plain(here)}
            for name, stored, here in answer.parts
        ],
        "not_compared": list(answer.not_compared),
    }


def _plain(value: object) -> object:
    return None if isinstance(value, Absent) else value
