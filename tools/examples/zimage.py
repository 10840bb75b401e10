"""Z-Image: patch a pipeline, record what it asks for, warm that, and run strict.

    python -m jitd.tools.examples.zimage

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
    pipe, given = tiny.zimage(**steps.place())
    with torch.no_grad():
        (stock,) = pipe(**given, **steps.seeded(), output_type="pt")

    report = patch(pipe)  # the same as jitd.patch(pipe)
    workload = steps.recorded(
        pipe, Size(128, 128), prompt_tokens=16, variant="guided", save=options.save
    )
    steps.warmed(workload, options.signatures)
    (images,) = steps.strict(lambda: pipe(**given, **steps.seeded(), output_type="pt"))

    print(report)
    steps.compared(images, stock)
    return 0


if __name__ == "__main__":
    sys.exit(main())
