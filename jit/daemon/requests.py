"""What the server does about the requests that concern builds."""

from .connection import Connection
from .protocol import Accepted, Answer, Build, Document, ProtocolError, Refused, Warmup
from .queue import Job, Priority, QueueFull
from .schedule import Schedule


def build(schedule: Schedule, connection: Connection, request: Build) -> Answer:
    """Queue a build, or join one that is queued or under way."""
    schedule.counts["requests"] += 1
    priority = Priority.WAITING if request.waiting else Priority.BACKGROUND
    try:
        job = enqueue(schedule, request, connection.number, priority)
    except QueueFull:
        schedule.counts["refused:full"] += 1
        return Refused("full", f"{schedule.queue.most} builds are queued")
    connection.wanted.add(job.key)
    return Accepted(job.key)


def wait(schedule: Schedule, connection: Connection, key: str) -> Answer:
    """Make a build that somebody asked for urgent."""
    job = schedule.queue.find(key)
    if job is None:
        return Refused("unknown", "no such build is queued or under way")
    schedule.queue.add(job.build, connection.number, Priority.WAITING)
    connection.wanted.add(key)
    return Accepted(key)


def warmup(schedule: Schedule, connection: Connection, request: Warmup) -> Answer:
    """Queue a workload behind everything else, as much of it as there is room for."""
    if len(request.modules) != len(request.signatures):
        raise ProtocolError("a warmup with other numbers of signatures and modules.")
    keys = []
    for signature, module in zip(request.signatures, request.modules, strict=True):
        one = Build(
            signature.partition("[")[0], module, "", signature, request.device, request.target,
            waiting=False, path=request.path,
        )  # fmt: skip
        try:
            keys.append(enqueue(schedule, one, connection.number, Priority.WARMUP).key)
        except QueueFull:
            break
    connection.wanted.update(keys)
    return Document({"keys": keys, "left_out": len(request.signatures) - len(keys)})


def cancel(schedule: Schedule, connection: Connection, key: str) -> Answer:
    """Take a client off a build."""
    connection.wanted.discard(key)
    return Document({"cancelled": schedule.queue.cancel(key, connection.number)})


def enqueue(schedule: Schedule, request: Build, client: int, priority: Priority) -> Job:
    """Raises QueueFull."""
    job = schedule.queue.add(request, client, priority)
    schedule.kick()
    return job
