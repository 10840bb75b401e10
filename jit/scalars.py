"""Scalars that a launch is given anew at each call, as the driver takes them.

A prepared launch has a slot of 64 bits for each parameter. Addresses change from call to call, and
so do the floats of an op that `varies`: both are words that are written into their slots.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from .declare import Launch
from .errors import LaunchError
from .sign import Passed

if TYPE_CHECKING:
    from .launch import Loaded

Wanted: TypeAlias = tuple[str, str]
"""A scalar by name, and the PTX type that a binary takes it as."""

# PTX type -> struct format, padded to the 8 bytes of a slot.
_FORMATS = {"f32": "f4x", "f64": "d"}


@dataclass(frozen=True)
class Words:
    """The scalars that the binaries of a plan want, each in the bits of the type it is wanted as.

    `pack(values)` gives the words of a call's values, which are in the order of the op's arguments;
    `examples` are those of checks and timing.
    """

    wanted: tuple[Wanted, ...]
    pack: Callable[[Sequence[float]], Sequence[int]]
    examples: Sequence[int]

    @classmethod
    def of(
        cls, launches: Sequence[Launch], loaded: Sequence["Loaded"], varying: Sequence[str]
    ) -> "Words":
        """Of a plan's launches and their binaries; `varying` may be empty if `pack` is not needed.

        Raises LaunchError for a scalar that does not vary or is wanted as no float.
        """
        examples: dict[Wanted, float] = {}
        for launch, binary in zip(launches, loaded, strict=True):
            for parameter, ptx_type in binary.params:
                value = launch.args[parameter]
                if not isinstance(value, Passed):
                    continue
                if ptx_type not in _FORMATS:
                    raise LaunchError(
                        f"{launch.kernel}: {parameter} is a .{ptx_type}; a float that varies can "
                        f"be passed as {' or '.join(_FORMATS)}."
                    )
                if varying and value.name not in varying:
                    raise LaunchError(
                        f"{launch.kernel}: {parameter} is given {value.name}, which is not among "
                        f"{', '.join(varying)}."
                    )
                examples[value.name, ptx_type] = value.example
        wanted = tuple(examples)
        order = [varying.index(name) for name, _ in wanted] if varying else []
        floats = struct.Struct("<" + "".join(_FORMATS[ptx_type] for _, ptx_type in wanted)).pack
        words = struct.Struct(f"<{len(wanted)}Q").unpack

        def pack(values: Sequence[float]) -> Sequence[int]:
            return words(floats(*[values[place] for place in order]))

        def pack_in_order(values: Sequence[float]) -> Sequence[int]:
            return words(floats(*values))

        in_order = order == list(range(len(varying)))
        return cls(wanted, pack_in_order if in_order else pack, words(floats(*examples.values())))
