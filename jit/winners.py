"""Winners of one device: the stored, the former, the nearest; the journal of a tune under way."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..autotune.policy import Policy
from ..autotune.search import Outcome
from ..cache.keys import Key
from .declare import Config, Device
from .keys import journal_key, tuning_key
from .op import Op
from .shelf import Body, Shelf
from .sign import Call
from .task import Found, outcome_of

log = logging.getLogger("jitd")


@dataclass(frozen=True)
class Winners:
    """What is known of the fastest configs, on one device under one toolchain and policy."""

    shelf: Shelf
    device: Device
    toolchain: str
    policy: Policy

    def key(self, op: Op, call: Call) -> Key:
        return tuning_key(op, call, self.device, self.toolchain, self.policy)

    # -- looking ------------------------------------------------------------------------------

    def get(self, op: Op, call: Call) -> Config | None:
        """The stored winner's config, if its code is still what was timed."""
        body = self.shelf.get(self.key(op, call))
        if body is None:
            return None
        config = op.config(body["variant"], body["params"])
        bucket = op.bucket(call)
        if config is None or config.digest(bucket, self.device) != body["digest"]:
            return None
        return config

    def body(self, op: Op, call: Call) -> Body | None:
        return self.shelf.get(self.key(op, call))

    def former(self, op: Op, call: Call) -> Config | None:
        """The winner of another toolchain or policy on this card, the latest one.

        After an upgrade it serves, compiled and checked anew, until the bucket is tuned again.
        """
        bucket = op.bucket(call)
        text, current = op.sign(bucket).text, self.key(op, call).digest
        found = [
            header
            for header in self.shelf.headers("winner", op.name)
            if header.label == text
            and header.digest != current
            and header.meta.get("device") == self.device.name
        ]
        for header in sorted(found, key=lambda h: (-h.created, h.digest)):
            record = self.shelf.store.record_for(header)
            config = op.config(record.body["variant"], record.body["params"]) if record else None
            if config is not None and config.variant.applies(bucket) is None:
                return config
        return None

    def guess(self, op: Op, call: Call) -> Config | None:
        """The config of the nearest winner that fits `call`, else the default."""
        wanted = op.bucket(call)
        fitting: set[str] = set()  # takes a while to list, and mostly there is nothing to compare
        for config in self.nearest(op, wanted):
            fitting = fitting or {one.name for one in op.configs(wanted, self.device)[0]}
            if config.name in fitting:
                return config
        return op.default(call, self.device)

    def nearest(self, op: Op, call: Call) -> Iterator[Config]:
        """Configs that won elsewhere, the likeliest first: on this card by log-distance in shape,
        then, as a hint only, on other cards of the target."""
        shape = call[op.tensors[0].name].shape
        ranked = []
        for header in self.shelf.headers("winner", op.name):
            other = header.meta.get("shape", ())
            if header.meta.get("target") != self.device.target or len(other) != len(shape):
                continue
            distance = sum(
                abs(math.log2(max(a, 1) / max(b, 1))) for a, b in zip(shape, other, strict=True)
            )
            elsewhere = header.meta.get("device") != self.device.name
            ranked.append(((elsewhere, distance, header.path), header))
        for _, header in sorted(ranked, key=lambda pair: pair[0]):
            record = self.shelf.store.record_for(header)
            config = op.config(record.body["variant"], record.body["params"]) if record else None
            if config is not None:
                yield config

    # -- tuning -------------------------------------------------------------------------------

    def known(self, op: Op, bucket: Call, configs: Sequence[Config]) -> dict[str, Body]:
        """Trials of an earlier or unfinished tune of this bucket whose code is unchanged."""
        key = self.key(op, bucket)
        trials: dict[str, Body] = {}
        for found in (self.shelf.get(key), self.shelf.get(journal_key(key))):
            for trial in found["outcomes"] if found else ():
                trials[trial["config"]] = trial
        return {
            config.name: trials[config.name]
            for config in configs
            if config.name in trials
            and trials[config.name].get("digest") == config.digest(bucket, self.device)
        }

    def complete(self, op: Op, call: Call) -> bool:
        """Whether there is a winner, and no config worth trying is new or changed since."""
        if self.get(op, call) is None:
            return False
        bucket = op.bucket(call)
        configs, _ = op.configs(bucket, self.device)
        return len(self.known(op, bucket, configs)) == len(configs)

    def journal(self, op: Op, bucket: Call, configs: Sequence[Config]) -> "Journal":
        return Journal(self, op, bucket, {config.name: config for config in configs})

    def publish(
        self,
        op: Op,
        bucket: Call,
        winner: Config,
        found: Found,
        trials: Sequence[Body],
        dropped: Sequence[tuple[str, str]],
        tuned_at: str,
    ) -> Body:
        """Store a winner with its landscape: one record, put once."""
        timing = next(t["timing"] for t in trials if t["config"] == winner.name)
        body = {
            "variant": winner.variant.name,
            "params": dict(winner.params),
            "config": winner.name,
            "digest": winner.digest(bucket, self.device),
            "signature": op.sign(bucket).text,
            "tuned_at": tuned_at,
            "us": timing["us"],
            "how": timing["how"],
            "eager_us": found.eager_us,
            "floor_us": found.floor_us,
            "device": self.device.name,
            "target": self.device.target,
            "driver": self.device.driver,
            "check": dict(found.check) if found.check else None,
            "outcomes": list(trials),
            "dropped": _by_reason(dropped),
            "stopped_early": found.stopped_early,
            "drift": found.drift,
            "noisy": found.drift > self.policy.drift,
        }
        return self._put(op, bucket, body)

    def adopt(self, op: Op, bucket: Call, winner: Config, other: Body) -> Body:
        """Store for `bucket` what was found at another, smaller bucket (`tuned_at` says which)."""
        body = {
            **other,
            "variant": winner.variant.name,
            "params": dict(winner.params),
            "config": winner.name,
            "digest": winner.digest(bucket, self.device),
            "signature": op.sign(bucket).text,
            "check": None,
        }
        return self._put(op, bucket, body)

    def _put(self, op: Op, bucket: Call, body: Body) -> Body:
        names = ("config", "us", "eager_us", "floor_us", "device", "target", "driver", "noisy")
        meta = {name: body[name] for name in names}
        meta["shape"] = list(bucket[op.tensors[0].name].shape)
        return self.shelf.put(self.key(op, bucket), body, op.sign(bucket).text, meta)


@dataclass
class Journal:
    """The trials of a tune, kept as they are made, so that a killed tune is not lost."""

    winners: Winners
    op: Op
    bucket: Call
    configs: Mapping[str, Config]
    on_trial: Any = lambda done, total: None
    trials: dict[str, Body] = field(default_factory=dict)
    _saved: bool = True

    @property
    def key(self) -> Key:
        return journal_key(self.winners.key(self.op, self.bucket))

    def trial(self, record: Mapping[str, Any]) -> None:
        """Note what became of a candidate so far."""
        name = record["config"]
        digest = self.configs[name].digest(self.bucket, self.winners.device)
        self.trials[name] = {**record, "digest": digest}
        self._saved = False
        self.on_trial(len(self.trials), len(self.configs))

    def idle(self) -> None:
        """Save, if anything is new."""
        if self._saved:
            return
        done = [t for t in self.trials.values() if t["timing"] or t["status"] != "dropped"]
        device = self.winners.device
        meta = {
            "device": device.name,
            "target": device.target,
            "done": len(done),
            "of": len(self.configs),
        }
        label = self.op.sign(self.bucket).text
        self.winners.shelf.put(self.key, {"outcomes": done}, label, meta)
        self._saved = True

    def start_from(self, known: Mapping[str, Body]) -> dict[str, Outcome]:
        """Take over earlier trials; those that say something, as the search wants them."""
        self.trials.update(known)
        outcomes = {name: outcome_of(trial) for name, trial in known.items()}
        return {n: o for n, o in outcomes.items() if o.timing or o.status in ("failed", "wrong")}

    def why_not(self) -> str:
        """The commonest reasons why candidates were not valid."""
        reasons = [f"{t['reason']}: {t['detail']}"[:200] for t in self.trials.values()]
        return "; ".join(sorted(set(reasons), key=reasons.count, reverse=True)[:3])

    def close(self) -> None:
        """The tune is over and its winner stored: the journal is not needed any more."""
        self.winners.shelf.drop(self.key)


def _by_reason(dropped: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    """Reason -> the configs dropped for it before they were compiled."""
    reasons: dict[str, list[str]] = {}
    for name, reason in dropped:
        reasons.setdefault(reason, []).append(name)
    return reasons
