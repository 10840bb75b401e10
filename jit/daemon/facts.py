"""What the daemon says of itself: to `jitctl daemon status`, `jitctl top` and Prometheus."""

import contextlib
import os
import resource
from pathlib import Path
from typing import Any

from .queue import Job
from .schedule import Schedule

_SHOWN = 100  # jobs in a status, which must fit into a frame
_SHOWN_TEXT = 300


def work_facts(schedule: Schedule) -> dict[str, Any]:
    """The queue, the workers, and what was built."""
    jobs = list(schedule.queue)
    running = sum(job.running for job in jobs)
    return {
        "pid": os.getpid(),
        "resident_bytes": resident_bytes(),
        "queued": len(jobs) - running,
        "running": running,
        "compile_workers": schedule.compilers.jobs,
        "compiled": schedule.compilers.compiled,
        "workers": [_worker_facts(schedule, place) for place in sorted(schedule.workers)],
        "jobs": [_job_facts(job) for job in jobs[:_SHOWN]],
        "recent": [one.facts() for one in list(schedule.recent)[:20]],
        "counts": dict(sorted(schedule.counts.items())),
    }


def _worker_facts(schedule: Schedule, place: str) -> dict[str, Any]:
    worker = schedule.workers[place]
    usage = schedule.look(worker.device) if worker.device else None
    return {
        "place": place,
        "pid": worker.pid,
        "alive": worker.alive,
        "gpu_busy": usage.busy if usage else None,
        "gpu_free_bytes": usage.free_bytes if usage else None,
    }


def _job_facts(job: Job) -> dict[str, Any]:
    return {
        "key": job.key,
        "signature": job.build.signature[:_SHOWN_TEXT],
        "place": job.place,
        "state": "running" if job.running else "queued",
        "priority": job.priority.name.lower(),
        "clients": len(job.clients),
        "done": job.done,
        "total": job.total,
    }


def resident_bytes() -> int:
    """The memory of this process."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * resource.getpagesize()
    return 0
