"""The figures to reach, as data: which shapes are measured, and what counts as good there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

GROUPS = 32
"""Groups of every GroupNorm that is measured."""

Yardstick = Literal["best peer", "compile", "floor"]


@dataclass(frozen=True)
class Limit:
    """A time may be at most so many times the yardstick's, measured in the same process.

    `best peer` is the fastest of all others that were measured: eager, torch.compile and every
    peer given. A `must` is a limit that has to hold, a `goal` one that is worth working for.
    """

    at_most: float
    of: Yardstick
    word: Literal["must", "goal"] = "goal"

    def __str__(self) -> str:
        lead = "must " if self.word == "must" else ""
        return f"{lead}<= {self.at_most:g}x {self.of}"


@dataclass(frozen=True)
class Target:
    """One row of the GroupNorm table: a shape (N, C, *spatial) and its limits."""

    shape: tuple[int, ...]
    limits: tuple[Limit, ...]
    where: str = ""

    @property
    def name(self) -> str:
        return "x".join(map(str, self.shape))


_SMALL = (Limit(0.6, "best peer"),)
_MEDIUM = (Limit(0.65, "best peer"),)
_LARGE = (Limit(1.55, "floor", "must"), Limit(1.3, "floor"))

GROUP_NORM: Sequence[Target] = (
    Target((1, 512, 16, 8, 12), _SMALL, "512x768, before"),
    Target((1, 512, 16, 16, 24), _SMALL, "512x768, after; 1024x1536, before"),
    Target((1, 512, 16, 32, 48), _MEDIUM, "1024x1536, after"),
    Target((1, 512, 16, 17, 30), _SMALL, "1088x1920, before"),
    Target((1, 512, 16, 34, 60), _MEDIUM, "1088x1920, after"),
    Target((1, 512, 8, 45, 80), (Limit(1.9, "floor"),), "SGLang's benchmark: small"),
    Target((1, 512, 16, 90, 160), _LARGE, "SGLang's benchmark: pre_720p"),
    Target((1, 512, 16, 180, 320), _LARGE, "SGLang's benchmark: post_720p"),
    # The channels of the released upsampler.
    Target((1, 1024, 16, 16, 24), _SMALL, "512x768, after; 1024x1536, before"),
    Target((1, 1024, 16, 32, 48), _MEDIUM, "1024x1536, after"),
    Target((1, 1024, 16, 17, 30), _SMALL, "1088x1920, before"),
    Target((1, 1024, 16, 34, 60), _MEDIUM, "1088x1920, after"),
)


Part = Literal["rotary", "norm", "layer_norm", "gates", "helios", "zimage", "channels", "denoise"]


@dataclass(frozen=True)
class OpTarget:
    """One row of the tokens table: a signature as the op prints it, and its limits.

    part    what `--part` selects it by
    what    the row's name
    shared  arguments that are the same tensor as another: tables of q that are also those of k
    """

    part: Literal[
        "rotary", "norm", "layer_norm", "gates", "helios", "zimage", "channels", "denoise"
    ]
    what: str
    signature: str
    limits: tuple[Limit, ...] = ()
    where: str = ""
    shared: Mapping[str, str] = field(default_factory=dict)


def _floor(at_most: float) -> tuple[Limit, ...]:
    return (Limit(at_most, "floor"),)


_SAME_SPEED = (Limit(1.05, "best peer"),)
"""SGLang's rotary is at the floor: 5 % is what such a measurement varies by."""

_SELF = {"k_cos": "q_cos", "k_sin": "q_sin"}  # self-attention: one pair of tables for q and k
_IN_ONCE = "rounding=once"


def _rotary(tokens: int, half: int, where: str = "") -> OpTarget:
    shape = f"1x{tokens}x{64 * half}"
    return OpTarget(
        "rotary",
        f"split_rotary {shape}",
        f"split_rotary[bf16]({shape}, cos=1x32x{tokens}x{half})",
        _SAME_SPEED,
        where,
    )


def _rms(shape: str, at_most: float, where: str = "") -> OpTarget:
    width = shape.rpartition("x")[2]
    return OpTarget(
        "norm",
        f"rms_norm {shape}",
        f"rms_norm[bf16]({shape}, weight=bf16 {width}, {_IN_ONCE})",
        _floor(at_most),
        where,
    )


def _layer(shape: str, how: str, operand: str, at_most: float | None, where: str) -> OpTarget:
    return OpTarget(
        "layer_norm",
        f"layer_norm_modulate {shape}, {how}",
        f"layer_norm_modulate[bf16](1x{shape}, {operand}, {_IN_ONCE})",
        _floor(at_most) if at_most else (),
        where,
    )


def _qk(shape: str, tables: str, how: str = "", *, limits: tuple[Limit, ...] = ()) -> OpTarget:
    text = f"qk_norm_rotary[bf16]({shape}, q_cos={tables})"
    return OpTarget("rotary", f"qk_norm_rotary {shape}{how}", text, limits, "", _SELF)


def _gate(op: str, shape: str, operands: str = "", how: str = "") -> OpTarget:
    text = f"{op}[bf16]({shape}{operands and ', '}{operands})"
    return OpTarget("gates", f"{op} {shape}{how and ', '}{how}", text)


def _denoise(
    op: str, shape: str, how: str, operands: str, at_most: float | None = None
) -> OpTarget:
    text = f"{op}[fp32]({shape}{operands and ', '}{operands})"
    return OpTarget("denoise", f"{op} {shape}, {how}", text, _floor(at_most) if at_most else ())


_VIDEO, _AUDIO = ("1x32640x128", "1x8160x128"), "1x126x128"
_LATENTS = (*_VIDEO, _AUDIO)

DENOISE: Sequence[OpTarget] = (
    # What HQ asks for: three predictions, rescaled. 1.6x is the goal of the largest.
    _denoise(
        "guidance_combine", _VIDEO[0], "3 passes, rescaled", "perturbed=none, rescale=0.7", 1.6
    ),
    *(
        _denoise("guidance_combine", shape, "3 passes, rescaled", "perturbed=none, rescale=0.7")
        for shape in (_VIDEO[1], _AUDIO)
    ),
    *(
        _denoise(
            "guidance_combine",
            shape,
            "3 velocities, rescaled",
            f"perturbed=none, x=fp32 {shape}, rescale=0.7",
        )
        for shape in _LATENTS
    ),
    _denoise("guidance_combine", _VIDEO[0], "3 passes", "perturbed=none"),
    *(_denoise("velocity_to_x0", shape, "fp32", "") for shape in _VIDEO),
    *(_denoise("euler_step", shape, "fp32", "") for shape in _VIDEO),
    *(_denoise("res2s_midpoint", shape, "fp32", "") for shape in _LATENTS),
    *(_denoise("res2s_step", shape, "fp32", "") for shape in _LATENTS),
)


def _of(part: Any, what: str, signature: str, shared: Mapping[str, str] = {}) -> OpTarget:
    return OpTarget(part, what, signature, shared=shared)


_HELIOS, _ZIMAGE = "1x11040x5120", "1x4128x3840"
_GATE_ROWS = "gate=fp32 2x5120, index=i32 1x11040"

MODELS: Sequence[OpTarget] = (
    _of(
        "helios",
        f"qk_norm_rotary {_HELIOS}, interleaved",
        f"qk_norm_rotary[bf16]({_HELIOS}, q_cos=fp32 1x11040x256, layout=interleaved)",
        _SELF,
    ),
    _of(
        "helios",
        f"gate_residual_layer_norm_modulate {_HELIOS}, affine",
        f"gate_residual_layer_norm_modulate[bf16]({_HELIOS}, gate=fp32 2x5120, scale=none, "
        f"weight=fp32 5120, bias=fp32 5120, index=i32 1x11040, {_IN_ONCE})",
    ),
    _of(
        "helios",
        f"gate_residual {_HELIOS}, two fp32 rows",
        f"gate_residual[bf16]({_HELIOS}, {_GATE_ROWS}, {_IN_ONCE})",
    ),
    _of(
        "zimage",
        f"rms_norm_scale {_ZIMAGE}",
        f"rms_norm_scale[bf16]({_ZIMAGE}, weight=bf16 3840)",
    ),
    _of(
        "zimage",
        f"tanh_gate_residual_rms_norm {_ZIMAGE}",
        f"tanh_gate_residual_rms_norm[bf16]({_ZIMAGE}, weight=bf16 3840)",
    ),
    _of(
        "zimage",
        f"qk_norm_rotary {_ZIMAGE}, heads of 128, complex",
        f"qk_norm_rotary[bf16]({_ZIMAGE}, wq=128, q_cos=fp32 1x4128x64x2, layout=complex, "
        "rounding=each)",
        _SELF,
    ),
    _of("zimage", "swiglu 4128x10240", "swiglu[bf16](4128x10240)"),
    _of("zimage", f"layer_norm_scale {_ZIMAGE}", f"layer_norm_scale[bf16]({_ZIMAGE})"),
    *(
        _of("channels", f"channel_rms_norm_silu {what}", f"channel_rms_norm_silu[{how})")
        for what, how in (
            ("1x512x61x64x96", "bf16](1x512x61x64x96"),
            ("1x512x61x64x96, fast", "bf16](1x512x61x64x96, numerics=fast"),
            ("1x128x61x256x384", "bf16](1x128x61x256x384"),
            ("1x512x16x64x96, channels last", "bf16](1x512x16x64x96:channels_last_3d"),
            ("1x384x1x96x160, Wan", "bf16](1x384x1x96x160, weight=bf16 384, form=l2"),
            ("1x96x4x384x640, Wan", "bf16](1x96x4x384x640, weight=bf16 96, form=l2"),
            ("1x96x4x384x640, Wan fp32", "fp32](1x96x4x384x640, weight=fp32 96, form=l2"),
        )
    ),
)

_FUSED = "gate_residual_rms_norm_modulate", "gate_residual_rms_norm_dual_modulate"
_STAGES = "2x6144x4096", "1x24576x4096", "2x126x2048"
_TWO_ROWS = "scale=fp32 2x5120, index=i32 1x11040"

TOKENS: Sequence[OpTarget] = (
    # Tables of x's dtype, as SGLang and Lightricks have them.
    _rotary(126, 32, "audio"),
    _rotary(1536, 64),
    _rotary(6144, 64),
    _rotary(24576, 64),
    _rotary(32640, 64, "1088x1920"),
    # Tables of fp32, token by token in memory, as diffusers has them.
    OpTarget(
        "rotary",
        "split_rotary 2x6144x4096, fp32 tables",
        "split_rotary[bf16](2x6144x4096, cos=fp32 1x32x6144x64:perm0213)",
    ),
    _qk("1x6144x4096", "1x32x6144x64", limits=_floor(1.2)),
    _qk("1x6144x4096", "fp32 1x32x6144x64:perm0213", ", fp32 tables", limits=_floor(1.2)),
    _qk("2x6144x4096", "fp32 1x32x6144x64:perm0213", ", fp32 tables"),
    _qk("1x24576x4096", "fp32 1x32x24576x64:perm0213", ", fp32 tables"),
    _qk("2x126x2048", "fp32 1x32x126x32:perm0213", ", fp32 tables"),
    OpTarget(
        "rotary",
        "qk_norm_rotary 2x6144x2048, k 2x126x2048, fp32 tables",
        "qk_norm_rotary[bf16](2x6144x2048, k=2x126x2048, q_cos=fp32 1x32x6144x32:perm0213, "
        "k_cos=fp32 1x32x126x32:perm0213)",
        where="audio to video",
    ),
    OpTarget(
        "norm",
        "rms_norm_modulate 1x6144x4096",
        "rms_norm_modulate[bf16](1x6144x4096)",
        _floor(1.2),
    ),
    OpTarget(
        "norm",
        "rms_norm_modulate 1x24576x4096",
        "rms_norm_modulate[bf16](1x24576x4096)",
        _floor(1.15),
    ),
    OpTarget("norm", "rms_norm_modulate 2x6144x4096", "rms_norm_modulate[bf16](2x6144x4096)"),
    OpTarget(
        "norm",
        "rms_norm_modulate 2x6144x4096, rows and index",
        "rms_norm_modulate[bf16](2x6144x4096, scale=2x4096, index=i32 2x6144)",
        where="image to video",
    ),
    _rms("122880x128", 1.25, "per head"),
    _rms("4128x3840", 1.3),
    _rms("24576x4096", 1.15),
    OpTarget(
        "norm",
        "rms_norm 32x2560 fp32",
        f"rms_norm[fp32](32x2560, weight=fp32 2560, {_IN_ONCE})",
        (Limit(1.0, "compile"),),
        "Z-Image's caption",
    ),
    _layer("11040x5120", "fp32 of each token", "scale=fp32 1x11040x5120", None, "as models expand"),
    _layer("11040x5120", "two fp32 rows and index", _TWO_ROWS, 1.2, "in place of that"),
    _layer("11040x5120", "fp32", "scale=fp32 1x1x5120", 1.2, "Helios"),
    _layer("8640x5120", "fp32", "scale=fp32 1x1x5120", 1.2, "Helios"),
    _layer("4608x3840", "fp32", "scale=fp32 1x1x3840", 1.3, "Z-Image"),
    *(_gate("gate_residual", shape) for shape in _STAGES),
    _gate("gate_residual", _STAGES[0], "gate=2x4096, index=i32 2x6144", "rows and index"),
    *(_gate(op, shape) for op in _FUSED for shape in _STAGES),
    _gate("head_gate", "2x6144x4096", "logits=2x6144x32"),
    _gate("head_gate", "1x24576x4096", "logits=1x24576x32"),
    _gate("head_gate", "2x126x2048", "logits=2x126x32"),
    *MODELS,
)

HOST_OP_US = 8.0
"""At most so many microseconds for a whole call of an op with one launch, ..."""

HOST_OP_SHARE = 0.65
"""... and at most this share of `empty_like` and Triton's launch of the same kernel."""

DAEMON_SHARE = 1.03
"""A hit costs the CPU at most so many times what it costs without a daemon."""

START_FIRST_MS = 80.0
"""From a first torch kernel to a first tuned one, in a process with a warm cache."""

START_FURTHER_MS = 3.0
"""Each further signature."""

TUNE_SPEEDUP = 5.0
"""Times faster than @triton.autotune over the same configs, with workers and child up."""

TUNE_REGRET, TUNE_REGRET_PAIRS = 0.03, 0.95
"""A first pick is at most so much slower than the best of a long measurement, in so many pairs."""

TUNE_WORST = 0.02
"""No repeated tune picks anything that is slower than the best by more."""

TUNE_SAME, TUNE_SAME_PAIRS = 0.9, 0.7
"""From an empty store so many tunes pick the same, in so many pairs. With a stored winner: all."""

TUNE_TOGETHER = 1.3
"""Eight processes on a cold cache take at most so many times what one takes alone."""


@dataclass(frozen=True)
class Verdict:
    """A limit held against a measurement. `ratio` is None where the yardstick is missing."""

    limit: Limit
    ratio: float | None

    @property
    def met(self) -> bool | None:
        return None if self.ratio is None else self.ratio <= self.limit.at_most

    def __str__(self) -> str:
        if self.ratio is None:
            return f"{self.limit.word} ?"
        return f"{self.limit.word} {'met' if self.met else 'MISSED'} at {self.ratio:.2f}"


def judge(
    limits: Sequence[Limit], us: float | None, floor_us: float, others_us: Mapping[str, float]
) -> list[Verdict]:
    """Each limit against our time. Without a measured `compile` there is no best peer to name."""
    yardsticks = {"floor": floor_us}
    if "compile" in others_us:
        yardsticks |= {"best peer": min(others_us.values()), "compile": others_us["compile"]}
    return [
        Verdict(one, us / yardsticks[one.of] if us is not None and one.of in yardsticks else None)
        for one in limits
    ]


@dataclass(frozen=True)
class Reached:
    """One figure of a part of `tune` beside its goal. `met` is None if it was not measured."""

    what: str
    goal: str
    value: str
    met: bool | None

    def __str__(self) -> str:
        word = {None: "not measured", True: "met", False: "MISSED"}[self.met]
        return f"{self.what}: {self.value} (goal {self.goal}): {word}"

    def json(self) -> dict[str, Any]:
        return {"what": self.what, "goal": self.goal, "value": self.value, "met": self.met}
