"""The queue by itself: single flight, priorities, fairness, bounds."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jitd.jit.daemon.queue import Priority, Queue, QueueFull

from .conftest import build

WAITING, BACKGROUND, WARMUP = Priority


def taken(queue, place="card"):
    jobs = []
    while (job := queue.take(place)) is not None:
        jobs.append(job)
        queue.finish(job)
    return [job.build.signature.rpartition("(")[2].rstrip(")") for job in jobs]


def test_one_job_for_all_who_ask():
    """The same key is one job, as urgent as the most urgent of those who ask."""
    queue = Queue()
    first = queue.add(build(), 1, WARMUP)
    assert queue.add(build(waiting=True), 2, WAITING) is first
    assert (len(queue), first.clients, first.priority) == (1, {1, 2}, WAITING)


def test_a_job_under_way_is_joined():
    """Whoever asks for what is being built waits for it."""
    queue = Queue()
    job = queue.add(build(), 1, BACKGROUND)
    assert queue.take("card") is job
    assert queue.add(build(), 2, BACKGROUND) is job
    assert queue.take("card") is None


def test_clients_take_turns():
    """Of two clients with ten jobs each, neither has two begun in a row, however late one came."""
    queue = Queue()
    for number in range(10):
        queue.add(build(number=number), 1, BACKGROUND)
    for number in range(10, 20):
        queue.add(build(number=number), 2, BACKGROUND)
    owners = [int(number) > 10 for number in taken(queue)]
    assert all(a != b for a, b in itertools.pairwise(owners))


def test_late_clients_are_not_owed_the_past():
    """A client that comes when another had many builds shares from then on, no more."""
    queue = Queue()
    for number in range(20):
        queue.add(build(number=number), 1, BACKGROUND)
    for _ in range(10):
        queue.finish(queue.take("card"))
    for number in range(20, 30):
        queue.add(build(number=number), 2, BACKGROUND)
    first = taken(queue)[:6]
    assert sum(int(number) > 20 for number in first) == 3


def test_what_is_put_off_comes_later():
    """A job that was put off is not taken before its time, and keeps nobody else waiting."""
    queue = Queue()
    job = queue.add(build(number=0), 1, BACKGROUND)
    queue.add(build(number=1), 1, BACKGROUND)
    assert queue.take("card", now=1.0) is job
    queue.put_back(job, not_before=30.0)
    assert queue.take("card", now=2.0).build.signature == "good[bf16](2)"
    assert queue.take("card", now=29.0) is None
    assert queue.take("card", now=30.0) is job


def test_the_queue_is_bounded():
    """More than the bound is refused; what is queued already may still be joined."""
    queue = Queue(most=2)
    for number in range(2):
        queue.add(build(number=number), 1, BACKGROUND)
    with pytest.raises(QueueFull):
        queue.add(build(number=2), 2, WAITING)
    assert queue.add(build(number=0), 2, WAITING).clients == {1, 2}


def test_nobodys_job_is_built_but_not_urgently():
    """What a client asked for before it was killed stays, for the next one, but no one waits."""
    queue = Queue()
    job = queue.add(build(waiting=True), 1, WAITING)
    queue.leave(1)
    assert (job.clients, job.priority) == (set(), BACKGROUND)
    assert queue.take("card") is job


CALLS = st.lists(
    st.tuples(
        st.sampled_from(["add", "take", "finish", "leave", "cancel", "put_back"]),
        st.integers(0, 5),
        st.integers(1, 3),
        st.sampled_from(list(Priority)),
    ),
    max_size=60,
)


@given(CALLS)
def test_whatever_happens_nothing_is_lost_or_built_twice(calls):
    """Each job runs once unless it is put back, and stays unless it is finished or cancelled."""
    queue, running, cancelled = Queue(most=4), {}, set()
    wanted = set()
    for what, number, client, priority in calls:
        job = queue.find(build(number=number).key)
        match what:
            case "add":
                try:
                    queue.add(build(number=number), client, priority)
                    wanted.add(number)
                    cancelled.discard(number)
                except QueueFull:
                    assert len(queue) == 4
            case "take":
                taken_now = queue.take("card")
                if taken_now is not None:
                    assert taken_now.key not in running
                    running[taken_now.key] = taken_now
            case "finish" if job is not None and job.running:
                queue.finish(running.pop(job.key))
                wanted.discard(number)
            case "put_back" if job is not None and job.running:
                queue.put_back(running.pop(job.key))
            case "leave":
                queue.leave(client)
            case "cancel" if job is not None:
                if queue.cancel(job.key, client) and queue.find(job.key) is None:
                    wanted.discard(number)
    left = {job.key for job in queue}
    assert left == {build(number=number).key for number in wanted}
    assert {job.key for job in queue if job.running} == set(running)
