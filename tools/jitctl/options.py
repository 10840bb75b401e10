"""Options that several commands have: the same name, the same meaning, the same help."""

from typing import Annotated, TypeAlias

import typer

AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]

Models: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--model", help="The records of this model's ops. Repeatable.", metavar="NAME"),
]
Ops: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--op", help="The records of this op. Repeatable.", metavar="OP"),
]
Archs: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--arch", help="Only those for this architecture. Repeatable.", metavar="sm_NN"),
]
WouldRemove: TypeAlias = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be removed; remove nothing.")
]
Imports: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--import", help="Module that declares ops outside jitd. Repeatable.", metavar="MODULE"
    ),
]
DeviceIndex: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--device", help="CUDA index of the GPU to tune on; 0 if none.", min=0, metavar="N"
    ),
]
Jobs: TypeAlias = Annotated[
    int | None,
    typer.Option("--jobs", help="Compile workers; all cores if none.", min=1, metavar="N"),
]
