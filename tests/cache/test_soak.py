"""Many writers, readers and a remover on one cache, with kill -9: nothing torn, lost or left."""

import json
import os
from pathlib import Path

import pytest
from jitd.cache.store import Store

from .soak import KEPT, Outcome, body_for, is_whole, judge_sections, lost, soak

LONG_S = float(os.environ.get("JITD_SOAK_S", "60"))


def test_a_few_processes_with_kills(tmp_path: Path) -> None:
    """4 writers and 4 readers, for 60 operations in each writer's place."""
    outcome = soak(tmp_path, writers=4, readers=4, operations=60, seconds=120)
    assert outcome.wrong == []
    assert outcome.operations["write"] >= 4 * 60
    assert min(outcome.killed, outcome.operations["read"], outcome.operations["remove"]) > 0


@pytest.mark.long
@pytest.mark.timeout(LONG_S + 300)
def test_many_processes_with_kills(tmp_path: Path) -> None:
    """32 writers and 32 readers for a minute, or for JITD_SOAK_S seconds."""
    outcome = soak(tmp_path, writers=32, readers=32, operations=1_000_000, seconds=LONG_S)
    print(outcome)
    assert outcome.wrong == []
    assert outcome.killed > 32


@pytest.mark.parametrize(
    ("events", "wrong"),
    [
        (["begin a", "end a", "begin b", "end b"], 0),
        (["begin dead", "begin a", "end a"], 0),
        (["begin a", "begin b", "end a", "end b"], 3),
        (["begin dead", "begin a", "end dead", "end a"], 2),
    ],
)
def test_the_judge_sees_two_in_a_section(tmp_path: Path, events: list[str], wrong: int) -> None:
    """Two at once in a section are found; one that was killed in it is no fault."""
    path, outcome = tmp_path / "sections.jsonl", Outcome()
    lines = [dict(zip(("what", "writer"), event.split(), strict=True)) for event in events]
    path.write_text("\n".join(json.dumps({**line, "lock": "00"}) for line in lines))
    judge_sections(path, {"dead"}, outcome)
    assert len(outcome.wrong) == wrong


def test_the_judge_sees_what_was_lost(store: Store) -> None:
    """A record that is gone without a removal, or older than the last put, is found."""
    first, second = ({"writer": "a", "number": n, "began": n, "ended": n + 0.5} for n in (0, 1))
    old = store.put(KEPT[0], body_for(KEPT[0], "a", 0, 10))
    new = store.put(KEPT[0], body_for(KEPT[0], "a", 1, 10))
    puts = [first, second]
    assert [*lost(new, puts, puts, [])] == []
    assert [*lost(None, puts, puts, [{"began": 2}])] == []
    assert [*lost(None, [], [first], [])] == []
    assert len([*lost(None, puts, puts, [])]) == 1
    assert len([*lost(old, puts, puts, [])]) == 1
    assert len([*lost(new, [first], [first], [])]) == 1


def test_the_judge_sees_a_torn_record(store: Store) -> None:
    """A body of another key, or with a byte of another body, is not whole."""
    record = store.put(KEPT[0], body_for(KEPT[0], "a", 0, 10))
    assert is_whole(KEPT[0], record)
    assert not is_whole(KEPT[1], record)
    record.body["data"] = b"x" + record.body["data"][1:]
    assert not is_whole(KEPT[0], record)
