"""Messages over pipes: whole, or refused with the reason."""

import os
import struct
import threading
import time
from contextlib import suppress

import msgpack
import pytest
from jitd.jit import frames
from jitd.jit.frames import FrameError


@pytest.fixture
def pipe():
    reading, writing = os.pipe()
    ends = {"reading": reading, "writing": writing}
    yield ends
    for end in ends.values():
        with suppress(OSError):  # the test closed it
            os.close(end)


@pytest.mark.parametrize(
    "message", [{}, {"a": 1}, {"b": b"\0" * 3_000_000, "nested": {"x": [1, None, 2.5, "ü"]}}]
)
def test_round_trip(pipe, message):
    """What is sent is received, larger than a pipe's buffer, too."""
    sender = threading.Thread(target=frames.send, args=(pipe["writing"], message))
    sender.start()
    assert frames.receive(pipe["reading"], 30) == message
    sender.join(30)


def test_frames_do_not_run_together(pipe):
    """Messages that arrive at once are received one by one."""
    for i in range(3):
        frames.send(pipe["writing"], {"i": i})
    assert [frames.receive(pipe["reading"], 5)["i"] for i in range(3)] == [0, 1, 2]


def test_bytes_that_trickle_in(pipe):
    """A message that arrives byte by byte is whole."""
    data = frames.pack({"slow": "message"})

    def trickle():
        for byte in data:
            os.write(pipe["writing"], bytes([byte]))

    threading.Thread(target=trickle).start()
    assert frames.receive(pipe["reading"], 30) == {"slow": "message"}


GARBAGE = {
    "not msgpack": (struct.pack(">I", 4) + b"\xc1\xc1\xc1\xc1", "not msgpack"),
    "text": (b"Traceback (most recent call last):", "announces|closed"),
    "a list": (struct.pack(">I", 2) + b"\x91\x01", "holds a list"),
    "two objects": (struct.pack(">I", 2) + b"\x80\x80", "not msgpack"),
    "a cut body": (struct.pack(">I", 100) + b"\x80", "closed"),
    "a cut length": (b"\0\0", "closed"),
    "nothing": (b"", "closed"),
    "too much": (struct.pack(">I", frames.MAX_FRAME_BYTES + 1), "announces"),
    "integer keys": (frames._LENGTH.pack(3) + msgpack.packb({1: 2}), "not msgpack"),
    "broken text": (frames._LENGTH.pack(4) + b"\x81\xa1\xff\x01", "not msgpack"),
}


@pytest.mark.parametrize("case", GARBAGE)
def test_garbage_is_refused(pipe, case):
    """Garbage, a cut stream and an oversized announcement raise FrameError that says which."""
    data, says = GARBAGE[case]
    os.write(pipe["writing"], data)
    os.close(pipe["writing"])
    with pytest.raises(FrameError, match=says):
        frames.receive(pipe["reading"], 5)


def test_waiting_ends(pipe):
    """Silence, and a frame that stops half-way, end at the deadline: it bounds the whole frame."""
    began = time.monotonic()
    with pytest.raises(FrameError, match="no answer in time"):
        frames.receive(pipe["reading"], 0.1)
    os.write(pipe["writing"], struct.pack(">I", 100) + b"half")
    with pytest.raises(FrameError, match="no answer in time"):
        frames.receive(pipe["reading"], 0.1)
    assert time.monotonic() - began < 5


def test_an_oversized_message_is_not_sent(monkeypatch):
    """A message that the other end would refuse is refused here."""
    monkeypatch.setattr(frames, "MAX_FRAME_BYTES", 100)
    with pytest.raises(FrameError, match="allowed are 100"):
        frames.pack({"x": b"0" * 101})
