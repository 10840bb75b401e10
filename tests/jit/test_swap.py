"""Mode `background` seen from a call: what answers now, later, and while a graph is captured.

Tensors are on the CPU and stand for those of a card; what a launch would do is a marked answer.
"""

import jitd
import pytest
import torch
from jitd.jit import dispatch
from jitd.jit.dispatch import _dispatchers
from jitd.jit.errors import NotReady
from jitd.jit.runtime import Runtime
from jitd.jit.settings import Settings
from jitd.jit.stats import STATS
from outside.ops import scale

DISPATCHER = _dispatchers["outside_scale"]


class Asked:
    """Stands for the thread that has things built."""

    def __init__(self):
        self.then = []
        self.asks = 0

    def ask(self, builder, op, call, then):
        self.asks += 1
        self.then.append(then)

    def built(self):
        then, self.then = self.then, []
        for one in then:
            one()


class Card:
    """One card and what is stored for it. `stored`: the answer of the config that is checked."""

    def __init__(self, patch, machine):
        self.builder = machine.process()
        self.capturing = False
        self.stored = None
        self.for_good = False
        self.lookups = 0
        self.asked = Asked()
        runtime = Runtime(Settings.read(mode="background"))
        runtime.__dict__["background"] = self.asked
        patch.setattr(Runtime, "builder_at", lambda _self, index: self.builder)
        patch.setattr(dispatch, "current", lambda: runtime)
        patch.setattr(self.builder, "at_once", self.at_once)
        patch.setattr(DISPATCHER, "_unfit", lambda call, tensors: None)
        patch.setattr(DISPATCHER, "_interpreted", lambda runtime, tensors: False)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: self.capturing)
        patch.setattr(dispatch, "loaded_once", lambda artifact, device: artifact)
        patch.setattr(dispatch, "Executable", self.executable)

    def at_once(self, op, call):
        self.lookups += 1
        if isinstance(self.stored, NotReady):
            raise self.stored
        if self.stored is None:
            return None, False
        config = op.default(call, self.builder.device)
        plan = config.plan(call, self.builder.device)
        from jitd.jit.build import Ready  # noqa: PLC0415

        return Ready(config, plan, (self.stored,)), self.for_good

    def executable(self, plan, loaded, *rest):
        class Executable:
            def call(self):
                return lambda *given: torch.full_like(given[0], loaded[0])

        return Executable()


@pytest.fixture
def card(machine, monkeypatch):
    yield Card(monkeypatch, machine)
    DISPATCHER._outgoing.clear()
    DISPATCHER._asked.clear()


X = torch.ones(4)


def answer():
    """Of one call: 2.0 is the reference's."""
    return scale(X).tolist()[0]


def test_the_reference_until_it_is_built(card):
    """On a cold cache the reference answers, asking once; when it is built the next call takes it,
    and every later one is a hit."""
    assert [answer(), answer(), answer()] == [2.0, 2.0, 2.0]
    assert jitd.stats() == {"reference:pending": 3}
    assert (card.lookups, len(card.asked.then)) == (1, 1)
    card.stored, card.for_good = 7.0, True
    assert answer() == 2.0  # nobody has said so yet, and nobody looks
    card.asked.built()
    assert [answer(), answer(), answer()] == [7.0, 7.0, 7.0]
    assert card.lookups == 2 and card.asked.then == []
    assert DISPATCHER._outgoing == {}


def test_the_nearest_until_it_is_built(card):
    """With a checked binary of the nearest or the default config, that answers meanwhile."""
    card.stored = 5.0
    assert [answer(), answer()] == [5.0, 5.0]
    assert len(card.asked.then) == 1 and jitd.stats() == {}
    card.stored, card.for_good = 7.0, True
    card.asked.built()
    assert [answer(), answer()] == [7.0, 7.0]
    assert DISPATCHER._outgoing == {}


def test_nothing_is_swapped_in_the_middle_of_a_capture(card):
    """What answered before goes on to answer while a graph is captured; the first call after the
    capture takes what is better."""
    card.stored = 5.0
    assert answer() == 5.0
    card.capturing = True
    assert answer() == 5.0
    card.stored, card.for_good = 7.0, True
    card.asked.built()
    assert [answer(), answer()] == [5.0, 5.0]
    card.capturing = False
    assert answer() == 7.0
    card.capturing = True
    assert answer() == 7.0


def test_a_cold_capture_is_the_references_and_asks(card):
    """A signature first met in a capture is captured with the reference, and built meanwhile."""
    card.capturing = True
    assert answer() == 2.0
    assert len(card.asked.then) == 1
    card.stored, card.for_good = 7.0, True
    card.asked.built()
    assert answer() == 2.0
    card.capturing = False
    assert answer() == 7.0


def test_what_cannot_be_tuned_is_not_asked_for_again(card):
    """A signature whose tuning is known to fail is the reference's, counted by that cause."""
    card.stored = NotReady("tune_failed", "by order")
    assert [answer(), answer()] == [2.0, 2.0]
    assert card.asked.then == [] and jitd.stats() == {"reference:tune_failed": 2}
    assert card.lookups == 1


def test_what_is_never_found_is_asked_for_a_few_times(card):
    """If what is said to be built is not to be found, the caller does not ask for ever."""
    for _ in range(10):
        assert answer() == 2.0
        card.asked.built()
    assert card.lookups == 4 and card.asked.asks == 3


def test_a_new_configuration_forgets_what_was_asked(card):
    """After `configure` the tables are empty: what is built then for an old entry harms nobody."""
    assert answer() == 2.0
    dispatch.forget()
    card.asked.built()
    assert (DISPATCHER._outgoing, STATS["reference:pending"]) == ({}, 1)
    assert answer() == 2.0 and len(card.asked.then) == 1
