"""LTX-2 in two stages with the upsampler between them: patched, recorded, warmed, run strict.

    python -m jitd.tools.examples.ltx2_two_stage

A tiny one, with random weights. Without a GPU a few kernels are compiled for one elsewhere, and
every op is answered by its eager reference, which has the stock pipeline's bits.
"""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...models.patch.patching import patch
from ...models.pipelines.sizes import Size
from . import steps, tiny

# Stage 2 is not guided.
ONE_PASS = {
    f"{stream}{name}": value
    for stream in ("", "audio_")
    for name, value in (
        ("guidance_scale", 1.0),
        ("stg_scale", 0.0),
        ("modality_scale", 1.0),
        ("guidance_rescale", 0.0),
    )
}


def two_stages(pipe: Any, upsampler: Any, given: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """(video, audio) of twice the height and width that `given` says: those are of stage 1."""
    latents, audio = pipe(**given, **steps.seeded(), output_type="latent")
    (latents,) = upsampler(latents=latents, output_type="latent", return_dict=False)
    twice = {side: 2 * given[side] for side in ("height", "width")}
    video, audio = pipe(
        **{**given, **twice, **ONE_PASS, "num_inference_steps": 3},
        **steps.seeded(),
        sigmas=[0.909375, 0.725, 0.421875],
        noise_scale=0.909375,
        latents=latents,
        audio_latents=audio,
        output_type="pt",
    )
    return video, audio


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example. 0 if the strict run asked for nothing that was not warm."""
    options = steps.options(__doc__ or "", arguments)
    pipe, given = tiny.ltx2("2.3", **steps.place())
    upsampler = tiny.ltx2_upsampler(pipe)
    with torch.no_grad():
        stock, _ = two_stages(pipe, upsampler, given)

    reports = [patch(pipe), patch(upsampler.latent_upsampler)]  # the same as jitd.patch(...)
    workload = steps.recorded(
        pipe, Size(128, 192, 9), upsampler, prompt_tokens=8, variant="guided", save=options.save
    )
    steps.warmed(workload, options.signatures)
    video, _ = steps.strict(lambda: two_stages(pipe, upsampler, given))

    for report in reports:
        print(report)
    steps.compared(video, stock)
    return 0


if __name__ == "__main__":
    sys.exit(main())
