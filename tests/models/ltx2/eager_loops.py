"""Denoising loops in eager PyTorch, written from the formulas: what the drivers are held to.

Prompts, passes and steps one by one, with `tools/bench/eager_denoising.py` for the arithmetic.
Also used by tests/gpu.
"""

import math
from itertools import pairwise

import torch
from jitd.tools.bench import eager_denoising as eager

ORDER = ("cond", "neg", "perturbed", "modality")


def predictions(model, streams, x, sigma, given, guidance):
    """Both x0 of one step. `model(video, audio, sigma, pass's name)` gives velocities; `given` has
    (clean, mask) of a stream or None."""
    answers = {}
    for name in ORDER:
        wanted = {
            "cond": True,
            "neg": any(g.cfg != 1 for g in guidance),
            "perturbed": any(g.stg != 0 for g in guidance),
            "modality": any(g.modality != 1 for g in guidance),
        }
        if wanted[name]:
            answers[name] = model(*x, sigma, name)
    found = []
    for place, (latents, by) in enumerate(zip(x, guidance, strict=True)):
        level = sigma
        if given[place] is not None:
            level = given[place][1].float() * sigma
        used = {
            "cond": True, "neg": by.cfg != 1, "perturbed": by.stg != 0,
            "modality": by.modality != 1,
        }  # fmt: skip
        x0 = {
            name: eager.x0_of(latents, answer[place], level).float()
            for name, answer in answers.items()
            if used[name]
        }
        scales = {"cfg": by.cfg, "stg": by.stg, "mod": by.modality, "rescale": by.rescale}
        if len(x0) == 1:
            scales["rescale"] = 0.0  # the same twice: its deviation over its own is 1
        found.append(held(eager.combined(x0, scales).to(latents.dtype), given[place]))
    return tuple(found)


def held(x, given):
    if given is None:
        return x
    clean, mask = given
    return x * mask + clean * (1 - mask)


def euler(model, x, sigmas, guidance, given=(None, None)):
    x = tuple(held(one, known) for one, known in zip(x, given, strict=True))
    last = [None, None]
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        asks = [step % (by.skip_step + 1) == 0 or last[0] is None for by in guidance]
        if any(asks):
            new = predictions(model, None, x, sigma, given, guidance)
            last = [fresh if ask else old for fresh, ask, old in zip(new, asks, last, strict=True)]
        x = tuple(
            held(eager.euler(one, x0, sigma, sigma_next), known)
            for one, x0, known in zip(x, last, given, strict=True)
        )
    return x


def res2s(model, x, sigmas, guidance, noise, given=(None, None)):
    """Both streams share the model's calls, so that their steps are taken side by side."""
    x = tuple(held(one, known) for one, known in zip(x, given, strict=True))
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        first = predictions(model, None, x, sigma, given, guidance)
        if sigma_next == 0:
            x = first
            continue
        drawn = noise.at(step)
        sub = math.sqrt(sigma * sigma_next)
        middles = []
        for place, (mid, end) in enumerate(
            ((drawn.video_mid, drawn.video), (drawn.audio_mid, drawn.audio))
        ):
            asked = []
            answers = iter([first[place], first[place]])

            def ask(latents, at, asked=asked, answers=answers):
                asked.append(latents)
                return next(answers)

            eager.res2s(x[place], ask, sigma, sigma_next, mid, end)
            middles.append(held(asked[1], given[place]))
        second = predictions(model, None, tuple(middles), sub, given, guidance)
        moved = []
        for place, (mid, end) in enumerate(
            ((drawn.video_mid, drawn.video), (drawn.audio_mid, drawn.audio))
        ):
            answers = iter([first[place], second[place]])
            out = eager.res2s(x[place], lambda *_, a=answers: next(a), sigma, sigma_next, mid, end)
            moved.append(held(out, given[place]))
        x = tuple(moved)
    return x


def stand_in(channels=8, seed=0):
    """A transformer that is a few products: video hears audio, unless it is told not to, and each
    token hears its prompt and its timestep. Takes what `LTX2Transformer.forward` takes, as far as
    the drivers give it."""
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(channels, channels, generator=generator) / channels for _ in range(4)]

    def told_of(given, batch):
        configs = given.get("perturbation_configs")
        if configs is None:
            alone = {
                "skip_video_self_attn_blocks": given.get("skip_video_self_attn_blocks", []),
                "skip_audio_self_attn_blocks": given.get("skip_audio_self_attn_blocks", []),
                "skip_a2v_cross_attn": given.get("disable_a2v_cross_attn", False),
                "skip_v2a_cross_attn": given.get("disable_v2a_cross_attn", False),
            }
            configs = [alone] * batch
        assert len(configs) == batch
        return configs

    def one(x, other, text, steps, config, kind, weight):
        a, b = (w.to(x.device, x.dtype) for w in weight)
        skips, crosses = (
            ("skip_video_self_attn_blocks", "skip_a2v_cross_attn"),
            ("skip_audio_self_attn_blocks", "skip_v2a_cross_attn"),
        )[kind]
        self_part = x if config[skips] else torch.tanh(x @ a)
        cross = 0 if config[crosses] else torch.tanh(other.mean(0, keepdim=True) @ b)
        level = (steps / 1000).to(x.dtype)
        level = level[:, None] if level.ndim else level
        return self_part + cross + level * text.mean(0, keepdim=True)

    def forward(
        hidden_states, audio_hidden_states, encoder_hidden_states, audio_encoder_hidden_states,
        timestep, audio_timestep, **given,
    ):  # fmt: skip
        batch = hidden_states.shape[0]
        configs = told_of(given, batch)
        video, audio = [], []
        for n in range(batch):
            video.append(one(
                hidden_states[n], audio_hidden_states[n], encoder_hidden_states[n], timestep[n],
                configs[n], 0, weights[:2],
            ))  # fmt: skip
            audio.append(one(
                audio_hidden_states[n], hidden_states[n], audio_encoder_hidden_states[n],
                audio_timestep[n], configs[n], 1, weights[2:],
            ))  # fmt: skip
        return torch.stack(video), torch.stack(audio)

    return forward
