"""Every variant of the ops, by some configs of its space, held to the reference on the card."""

import random

import pytest
from jitd.jit.errors import LaunchError
from jitd.jit.tune import check

from .cases import ADD, SILU, WAIT_S, made_call

pytestmark = pytest.mark.gpu

CONFIGS = 5
CALLS = {
    "ltx2": made_call(ADD, (1, 1024, 16, 8, 12), 32, residual="perm02134"),
    "odd": made_call(ADD, (3, 96, 3, 17, 31), 32, dtype="fp32"),
    "silu": made_call(SILU, (1, 512, 8, 45, 80), 32, dtype="fp16", numerics="fast"),
    "last": made_call(ADD, (2, 96, 3, 17, 32), 32, x="channels_last_3d"),
    "last_silu": made_call(SILU, (1, 1024, 16, 8, 12), 32, x="channels_last_3d"),
    "last_frames": made_call(
        ADD, (1, 96, 16, 9, 11), 32, x="channels_last_3d", residual="perm02134", dtype="fp32"
    ),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("variant", [variant.name for variant in SILU.variants])
def test_configs_of_every_variant_are_right(workers, builder, card, variant, name):
    """Configs from all over each variant's space are within the verifier's bound; what does not fit
    on the card is refused by the driver, never hung."""
    call = CALLS[name]
    op = ADD if "residual" in call else SILU
    kept, _ = op.configs(call, card)
    own = [config for config in kept if config.variant.name == variant]
    chosen = random.Random(name).sample(own, min(CONFIGS, len(own)))
    running = [
        (config, [workers.submit(b) for b in builder.binaries(op, config.plan(call, card), call)])
        for config in chosen
    ]
    refused = []
    for config, futures in running:
        artifacts = [future.result(WAIT_S) for future in futures]
        try:
            probes = builder.probes(op, call, config)
            verdict = check(op, call, config, artifacts, card, probes)
        except LaunchError as error:
            assert "TOO_LARGE" in str(error)
            refused.append(config)
            continue
        if "TOO_LARGE" in verdict["reason"]:
            refused.append(config)
        else:
            assert verdict["ok"], f"{config}: {verdict['reason']}"
    assert len(refused) < len(chosen) or not chosen


def test_every_variant_is_tried():
    """No variant can be added without a call above that it computes."""
    for op in (SILU, ADD):
        for variant in op.variants:
            own = [call for call in CALLS.values() if ("residual" in call) == (op is ADD)]
            assert any(variant.applies(call) is None for call in own), (op, variant.name)
