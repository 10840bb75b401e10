"""Helios, Distilled: a pyramid of three sizes; patched, recorded, warmed, run strict.

    python -m jitd.tools.examples.helios

A tiny one, with random weights. Without a GPU a few kernels are compiled for one elsewhere, and
every op is answered by its eager reference, which has the stock pipeline's bits.
"""

import sys
from collections.abc import Sequence

import torch

from ...models.patch.patching import patch
from ...models.pipelines.sizes import Size
from . import steps, tiny


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example. 0 if the strict run asked for nothing that was not warm."""
    options = steps.options(__doc__ or "", arguments)
    pipe, given = tiny.helios(pyramid=True, **steps.place())
    with torch.no_grad():
        (stock,) = pipe(**given, **steps.seeded(), output_type="pt")

    report = patch(pipe)  # the same as jitd.patch(pipe)
    # One chunk: all of a video ask for the same.
    workload = steps.recorded(
        pipe, Size(64, 64), prompt_tokens=16, variant="pyramid", save=options.save
    )
    steps.warmed(workload, options.signatures)
    (video,) = steps.strict(lambda: pipe(**given, **steps.seeded(), output_type="pt"))

    print(report)
    steps.compared(video, stock)
    return 0


if __name__ == "__main__":
    sys.exit(main())
