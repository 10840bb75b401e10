"""Declaring ops: what a model calls, with its reference, rules and variants.

    @op(variants=(...), cost=..., outputs=...)
    def scale(x: Tensor, factor: float) -> Tensor:
        \"\"\"x * factor.\"\"\"
        return x * factor

The body is the eager reference; the decorated name is the op.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..autotune.verify import Bound
from .declare import Config, Cost, Device, Problem, Variant
from .errors import DeclarationError
from .sign import Call, Passed, Scalar, Signature, TensorSpec
from .source import function_source

_KINDS = {"Tensor": "tensor", "int": "int", "float": "float", "str": "str", "bool": "bool"}
_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class Argument:
    """One parameter of an op."""

    name: str
    kind: str  # tensor, int, float, str, bool
    optional: bool  # may be None
    default: Any  # inspect.Parameter.empty if it has none
    keyword_only: bool

    @property
    def schema(self) -> str:
        """How torch.library spells it: `Tensor? bias=None`."""
        word = {"tensor": "Tensor"}.get(self.kind, self.kind) + "?" * self.optional
        if self.default is inspect.Parameter.empty:
            return f"{word} {self.name}"
        default = f'"{self.default}"' if isinstance(self.default, str) else self.default
        return f"{word} {self.name}={default}"


def _same_call(call: Call) -> Call:
    return call


def _itself_only(call: Call) -> Sequence[Call]:
    return (call,)


def _nothing_else(call: Call) -> Sequence[Call]:
    return ()


def _anything(call: Call) -> None:
    return None


@dataclass(frozen=True, eq=False)
class Op:
    """An op: everything that is known of it without a GPU. Made by `op`.

    `function` is what models call, set when the op is registered with torch.
    """

    name: str
    version: int
    reference: Callable[..., Any]
    arguments: tuple[Argument, ...]
    returns: int
    variants: tuple[Variant, ...]
    outputs: Callable[[Call], Mapping[str, TensorSpec]]
    fake: Callable[..., Any] | None
    cost: Callable[[Call], Cost]
    check: Callable[[Call], None]
    selects: tuple[str, ...]
    varies: Mapping[str, float]
    implied: Mapping[str, Callable[[Call], TensorSpec]]
    bucket: Callable[[Call], Call]
    reach: Callable[[Call], Sequence[Call]]
    probes: Callable[[Call], Sequence[Call]]
    smaller: Callable[[Call], Call | None]
    below: Mapping[str, Callable[[Call], int]]
    lowers: Callable[..., bool] | None
    bound: Bound

    def __repr__(self) -> str:
        return f"<Op {self.name}: {', '.join(v.name for v in self.variants)}>"

    @property
    def tensors(self) -> list[Argument]:
        return [a for a in self.arguments if a.kind == "tensor"]

    @property
    def varying(self) -> list[Argument]:
        """The arguments whose values no key knows, in order."""
        return [a for a in self.arguments if a.name in self.varies]

    @property
    def schema(self) -> str:
        """The op's schema as torch.library wants it."""
        parts: list[str] = []
        for argument in self.arguments:
            if argument.keyword_only and "*" not in parts:
                parts.append("*")
            parts.append(argument.schema)
        result = "Tensor" if self.returns == 1 else f"({', '.join(['Tensor'] * self.returns)})"
        return f"({', '.join(parts)}) -> {result}"

    @cached_property
    def digest(self) -> str:
        """Changes with the op's version and with any of its variants."""
        return " ".join([f"v{self.version}", *(v.digest[:16] for v in self.variants)])

    # -- signatures ---------------------------------------------------------------------------

    def sign(self, call: Call) -> Signature:
        """The signature of a call. What the first tensor implies is not printed."""
        first = self.tensors[0].name
        main: TensorSpec = call[first]
        words = ["x".join(map(str, main.shape)) + _flags(main)]
        for argument in self.arguments:
            value = call[argument.name]
            if argument.name == first:
                continue
            if argument.kind == "tensor":
                expected = self._implied(argument.name, call)
                if value != expected:
                    words.append(f"{argument.name}={_difference(value, expected)}")
            elif argument.name in self.selects and value != argument.default:
                words.append(f"{argument.name}={value}")
        return Signature(f"{self.name}[{main.dtype}]({', '.join(words)})", call)

    def parse(self, text: str) -> Signature:
        """Read a printed signature back. Raises ValueError that says what is wrong with it."""
        try:
            return self._parsed(text)
        except ValueError as error:
            raise ValueError(f"{text!r}: {error} Write it like {self._example()}.") from error

    def _parsed(self, text: str) -> Signature:
        match = re.fullmatch(rf"{self.name}\[(\w+)\]\((.*)\)", text.strip())
        if not match:
            raise ValueError(f"no signature of {self.name}.")
        words = re.split(r", *(?=\w+=)", match[2])
        first = self.tensors[0].name
        values: dict[str, Any] = {first: _tensor(words[0], match[1], None)}
        given = dict(word.split("=", 1) for word in words[1:])
        scalars = [a for a in self.arguments if a.kind != "tensor"]
        for argument in scalars:
            if argument.name in self.varies:
                values[argument.name] = Passed(argument.name, self.varies[argument.name])
            elif argument.name in given:
                values[argument.name] = _scalar(argument, given.pop(argument.name))
            elif argument.default is not inspect.Parameter.empty:
                values[argument.name] = argument.default
            elif argument.name in self.selects:
                raise ValueError(f"{argument.name} is missing.")
            else:
                values[argument.name] = {"float": 1e-5, "int": 1}.get(argument.kind)
        for argument in self.tensors[1:]:
            expected = self._implied(argument.name, Call(values))
            word = given.pop(argument.name, None)
            values[argument.name] = expected if word is None else _tensor(word, match[1], expected)
        if given:
            raise ValueError(f"{self.name} has no {', '.join(sorted(given))}.")
        call = Call({a.name: values[a.name] for a in self.arguments})
        self.check(call)
        return self.sign(call)

    def _implied(self, name: str, call: Call) -> TensorSpec | None:
        return self.implied[name](call) if name in self.implied else None

    def _example(self) -> str:
        scalars = "".join(
            f", {a.name}=…"
            for a in self.arguments
            if a.name in self.selects and a.default is inspect.Parameter.empty
        )
        return f"{self.name}[bf16](1x64x32x32{scalars})"

    # -- configs ------------------------------------------------------------------------------

    def configs(self, call: Call, device: Device) -> tuple[list[Config], list[tuple[str, str]]]:
        """Every config worth trying, in canonical order, and (name, reason) of those dropped."""
        kept, dropped = [], []
        for variant in self.variants:
            reason = variant.applies(call)
            if reason is not None:
                dropped.append((variant.name, reason))
                continue
            good, bad = variant.space.configs(Problem(call, device))
            kept += [Config(variant, params) for params in good]
            dropped += [(Config(variant, params).name, reason) for params, reason in bad]
        return kept, dropped

    def default(self, call: Call, device: Device) -> Config | None:
        """The config that serves an untuned call: the first applicable variant's default."""
        for variant in self.variants:
            if variant.applies(call) is None:
                return Config(variant, variant.space.default(Problem(call, device)))
        return None

    def config(self, variant: str, params: Mapping[str, Any]) -> Config | None:
        """The config of a stored winner, or None if the op no longer has it.

        Only ever one of the space: a record cannot name a BLOCK that nobody declared.
        """
        for known in self.variants:
            axes = known.space.axes
            if known.name == variant and set(axes) == set(params) and _declared(axes, params):
                return Config(known, {name: params[name] for name in axes})
        return None

    @cached_property
    def reference_digest(self) -> str:
        return function_source(self.reference.__module__, self.reference.__name__).digest


def _declared(axes: Mapping[str, Sequence[Any]], params: Mapping[str, Any]) -> bool:
    """Whether each parameter has a value of its axis; 1, 1.0 and True are three values."""
    return all(
        any(type(value) is type(params[name]) and value == params[name] for value in values)
        for name, values in axes.items()
    )


def op(
    *,
    variants: Sequence[Variant],
    outputs: Callable[[Call], Mapping[str, TensorSpec]],
    cost: Callable[[Call], Cost],
    fake: Callable[..., Any] | None = None,
    version: int = 1,
    name: str | None = None,
    check: Callable[[Call], None] = _anything,
    selects: Sequence[str] = (),
    varies: Mapping[str, float] | None = None,
    implied: Mapping[str, Callable[[Call], TensorSpec]] | None = None,
    bucket: Callable[[Call], Call] = _same_call,
    reach: Callable[[Call], Sequence[Call]] = _itself_only,
    probes: Callable[[Call], Sequence[Call]] = _nothing_else,
    smaller: Callable[[Call], Call | None] = _anything,
    below: Mapping[str, Callable[[Call], int]] | None = None,
    lowers: Callable[..., bool] | None = None,
    bound: Bound = Bound(),  # noqa: B008  (frozen)
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make the decorated eager reference an op, registered with torch as `torch.ops.jitd.<name>`.

    variants  ways to compute it; the first that applies serves an untuned call
    outputs   call -> specs of the results by name. Reference, kernels and `torch.compile` all
              return exactly these strides
    fake      the op on tensors without memory, for torch.compile with symbolic sizes; by default
              made of `outputs`, which specialises on every size
    cost      call -> bytes that must move, and flops: the floor
    version   raised when the op comes to mean something else: every winner and check is void
    check     raises ValueError for a call that the op cannot answer at all
    selects   scalars that select code, and so are part of the signature
    varies    floats that differ from call to call, such as the sigma of a step -> an example, which
              checks and timing use. They select no code: no key knows their values, and each launch
              is given them anew. In rules and plans the call has a `Passed` in the place of the
              value, which is a kernel's argument as it stands. A captured graph keeps the values
              that it was captured with. Floats other than these are part of the in-process key and
              thus remembered one by one
    implied   tensor argument -> the spec it has unless the signature says otherwise
    bucket    call -> the call that is tuned for all of its bucket: its largest member
    reach     call -> calls that between them reach every binary class of the bucket
    probes    call -> further calls of its bucket at which its binaries are checked: sizes that
              leave tiles partly full, since a check vouches for every size of the bucket
    smaller   call of a bucket -> that of the next smaller bucket worth tuning in its place, where
              the memory does not suffice; None if there is none
    below     tensor of integers -> what all of them are below, from 0 on: what checks draw from,
              and what JITD_DEBUG=1 holds every call to
    lowers    the op's arguments -> whether torch.compile gets the reference in the place of one
              opaque node, because Inductor fuses that better. It may ask for dtypes and for sizes
              that do not vary: compiled code is guarded by what it asks for
    bound     how far from float64 a kernel may be, in terms of eager's own error

    Raises DeclarationError for anything that cannot work.
    """

    def declare(reference: Callable[..., Any]) -> Callable[..., Any]:
        from .dispatch import register  # noqa: PLC0415  (needs torch; this module does not)

        declared = Op(
            name=name or reference.__name__,
            version=version,
            reference=reference,
            arguments=tuple(_arguments(reference)),
            returns=_returns(reference),
            variants=tuple(variants),
            outputs=outputs,
            fake=fake,
            cost=cost,
            check=check,
            selects=tuple(selects),
            varies=dict(varies or {}),
            implied=dict(implied or {}),
            bucket=bucket,
            reach=reach,
            probes=probes,
            smaller=smaller,
            below=dict(below or {}),
            lowers=lowers,
            bound=bound,
        )
        _refuse_nonsense(declared)
        function = register(declared)
        OPS[declared.name] = declared
        return function

    return declare


OPS: dict[str, Op] = {}
"""Every op declared in this process, by name."""


def _arguments(reference: Callable[..., Any]) -> Iterator[Argument]:
    for parameter in inspect.signature(reference).parameters.values():
        annotation = inspect.formatannotation(parameter.annotation).replace("torch.", "")
        words = {w.strip() for w in annotation.strip("'\"").split("|")}
        kinds = [_KINDS[w] for w in words if w in _KINDS]
        if len(kinds) != 1 or words - set(_KINDS) - {"None"}:
            raise DeclarationError(
                f"{reference.__name__}: {parameter.name}: {annotation}. Allowed are Tensor, int, "
                "float, str and bool, with `| None` for a tensor."
            )
        yield Argument(
            name=parameter.name,
            kind=kinds[0],
            optional="None" in words,
            default=parameter.default,
            keyword_only=parameter.kind is parameter.KEYWORD_ONLY,
        )


def _returns(reference: Callable[..., Any]) -> int:
    text = str(inspect.signature(reference).return_annotation)
    return max(1, text.count("Tensor"))


def _refuse_nonsense(declared: Op) -> None:
    if not _NAME.fullmatch(declared.name):
        raise DeclarationError(f"op name {declared.name!r}: allowed are a-z, 0-9 and _.")
    if declared.name in OPS and OPS[declared.name].reference.__module__ != (
        declared.reference.__module__
    ):
        raise DeclarationError(
            f"op {declared.name} is declared in {OPS[declared.name].reference.__module__} already."
        )
    if not declared.tensors or declared.arguments[0].kind != "tensor":
        raise DeclarationError(f"op {declared.name}: the first argument must be a tensor.")
    names = {a.name for a in declared.arguments}
    if hidden := sorted(name for name in names if name.startswith("_")):
        raise DeclarationError(
            f"op {declared.name}: an argument is named {', '.join(hidden)}; allowed are names that "
            "do not begin with an underscore."
        )
    for field, values in (
        ("selects", declared.selects),
        ("varies", declared.varies),
        ("implied", declared.implied),
        ("below", declared.below),
    ):
        if unknown := set(values) - names:
            raise DeclarationError(f"op {declared.name}: {field} names {sorted(unknown)}.")
    for argument in declared.arguments:
        if argument.name in declared.varies and (
            argument.kind != "float" or argument.name in declared.selects
        ):
            raise DeclarationError(
                f"op {declared.name}: varies names {argument.name}, a {argument.kind}"
                f"{' that selects code' if argument.name in declared.selects else ''}. Allowed are "
                "floats that select none."
            )
    if len({v.name for v in declared.variants}) < len(declared.variants):
        raise DeclarationError(f"op {declared.name}: two variants share a name.")


def _flags(spec: TensorSpec) -> str:
    layout = "" if spec.layout == "contiguous" else f":{spec.layout}"
    return layout + ("" if spec.aligned else ":unaligned")


def _difference(value: TensorSpec | None, expected: TensorSpec | None) -> str:
    """What is to be said of a tensor beyond what is expected: `fp32 1x64:channels_last`."""
    if value is None:
        return "none"
    words = [] if expected and value.dtype == expected.dtype else [value.dtype]
    if not (expected and value.shape == expected.shape):
        words.append("x".join(map(str, value.shape)))
    return (" ".join(words) + _flags(value)) or ":contiguous"


def _tensor(text: str, dtype: str, expected: TensorSpec | None) -> TensorSpec | None:
    if text == "none":
        return None
    head, *flags = re.split(r":(?![^(]*\))", text)
    words = head.split()
    shape = expected.shape if expected else ()
    if words and words[-1][0].isdigit():
        shape = tuple(int(n) for n in words.pop().split("x"))
    dtype = words[0] if words else (expected.dtype if expected else dtype)
    layouts = [f for f in flags if f != "unaligned"] or ["contiguous"]
    return TensorSpec.with_layout(dtype, shape, layouts[0], aligned="unaligned" not in flags)


def _scalar(argument: Argument, text: str) -> Scalar:
    if argument.kind == "bool":
        if text not in ("True", "False"):
            raise ValueError(f"{argument.name} is {text}; allowed are True and False.")
        return text == "True"
    kinds: dict[str, Callable[[str], Scalar]] = {"int": int, "float": float, "str": str}
    return kinds[argument.kind](text)
