"""Keys of winners, journals, checks and failures. The binary key is in `binary`."""

from ..autotune.policy import Policy
from ..cache.keys import Key
from .declare import Config, Device
from .op import Op
from .sign import Call


def tuning_key(op: Op, call: Call, device: Device, toolchain: str, policy: Policy) -> Key:
    """What the winner for `call` depends on; equal for all calls of a bucket.

    The driver's version is no part: it is stored with the winner, which goes on serving under
    another driver. Each timing in the record carries its variant's digest.
    """
    return Key.of(
        "winner",
        op.name,
        op_version=op.version,
        problem=op.sign(op.bucket(call)).text,
        device=device.name,
        sm_count=device.sm_count,
        memory_bytes=device.memory_bytes,
        toolchain=toolchain,
        policy=policy.identity(),
    )


def journal_key(tuning: Key) -> Key:
    """Where the outcomes of a tune are kept while it is under way."""
    return Key.of("timing", tuning.op, tuning=tuning.digest)


def refusal_key(binary: Key) -> Key:
    """Remembers that a binary does not compile."""
    return Key.of("negative", binary.op, binary=binary.digest)


def failure_key(op: Op, call: Call, device: Device, toolchain: str, policy: Policy) -> Key:
    """Remembers that tuning failed, until the op or anything of the tuning key changes."""
    tuning = tuning_key(op, call, device, toolchain, policy)
    return Key.of("negative", op.name, tuning=tuning.digest, op=op.digest)


def check_key(op: Op, config: Config, cubins: tuple[str, ...], device: Device) -> Key:
    """What a check vouches for: these very binaries, launched so, on this model of card."""
    return Key.of(
        "check",
        op.name,
        op_version=op.version,
        reference=op.reference_digest,
        variant=config.variant.digest,
        config=config.name,
        cubins=cubins,
        device=device.name,
    )
