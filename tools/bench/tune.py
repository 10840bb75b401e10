"""How fast, right and steady tuning is: five parts, each of which fails alone."""

import importlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...jit.declare import Device
from ...jit.device import devices, stand_in
from .environment import environment, print_environment, print_versions, write_json
from .goals import Reached
from .table import reason_of

PARTS: Mapping[str, str] = {
    "triton": "against_triton",
    "processes": "together",
    "warmup": "warmup",
    "workers": "scaling",
    "pairs": "pairs",
}
"""Part -> the module that measures it, in the order in which they run: the longest one last."""

ON_THE_CPU = {"workers"}
TARGET = "sm_90"
"""What is compiled for where there is no GPU."""

Save = Callable[[Mapping[str, Any]], None]
"""Takes what a part has found so far: the file then has it, whatever comes next."""


@dataclass(frozen=True)
class Options:
    """repeats: tunes of a pair, from an empty store and again with a stored winner. seconds: after
    so many the `pairs` repeat less, three times at least."""

    repeats: int = 10
    seconds: float = 300.0


Part = Callable[[Device, Options, Save], Sequence[Reached]]


def part_of(name: str) -> Part:
    """The function of a part; importing it may import torch."""
    module = importlib.import_module(f"{__package__}.{PARTS[name]}")
    measure: Part = module.measure
    return measure


def run(*, parts: Iterable[str], options: Options, json: Path | None) -> bool:
    """Measure and print the parts; True if everything in them could be measured."""
    asked = [name for name in PARTS if name in set(parts)]
    card = next(iter(devices()), None)
    device = card or stand_in(TARGET)
    found: dict[str, Any] = {}
    report: dict[str, Any] = {"benchmark": "tune", "repeats": options.repeats, "parts": found}
    reached: list[Reached] = []
    failed: list[str] = []
    for name in asked:
        began = time.monotonic()
        found[name] = {}

        def save(figures: Mapping[str, Any], name: str = name, began: float = began) -> None:
            found[name] |= {**figures, "seconds": time.monotonic() - began}
            write_json(json, report)

        try:
            measure = part_of(name)
            if "environment" not in report:  # after the import, so that torch says its version
                report["environment"] = environment(device) | ({} if card else {"gpu": None})
                (print_environment if card else print_versions)(report["environment"])
            print(f"\n{name}: {(measure.__doc__ or name).splitlines()[0]}", flush=True)
            goals = measure(device, options, save)
        except Exception as error:  # noqa: BLE001  (a part that fails must not cost the others)
            failed.append(name)
            print(f"{name} failed: {reason_of(error)}", flush=True)
            save({"failed": reason_of(error)})
        else:
            reached += goals
            save({"goals": [goal.json() for goal in goals]})
            print(f"({name}: {time.monotonic() - began:.0f} s)", flush=True)
    if reached:
        print()
    for goal in reached:
        print(goal, flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}", flush=True)
    return not failed and all(goal.met is not None for goal in reached)
