"""Length-prefixed msgpack messages over a byte stream, with bounded sizes."""

import os
import select
import struct
import time
from typing import Any

import msgpack

from .errors import JitdError

MAX_FRAME_BYTES = 256 << 20
_LENGTH = struct.Struct(">I")


class FrameError(JitdError):
    """The other end closed, sent nonsense, or took too long; the message says which."""


class FrameTimeout(FrameError):
    """The other end took too long."""


def pack(message: dict[str, Any]) -> bytes:
    body: bytes = msgpack.packb(message)
    if len(body) > MAX_FRAME_BYTES:
        raise FrameError(f"a message of {len(body)} bytes; allowed are {MAX_FRAME_BYTES}.")
    return _LENGTH.pack(len(body)) + body


def send(fd: int, message: dict[str, Any]) -> None:
    data = memoryview(pack(message))
    while data:
        data = data[os.write(fd, data) :]


def receive(fd: int, timeout_s: float | None = None) -> dict[str, Any]:
    """The next message. Raises FrameError at the end, FrameTimeout after `timeout_s`."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    (length,) = _LENGTH.unpack(_read(fd, _LENGTH.size, deadline))
    if length > MAX_FRAME_BYTES:
        raise FrameError(f"a frame announces {length} bytes; allowed are {MAX_FRAME_BYTES}.")
    try:
        message = msgpack.unpackb(_read(fd, length, deadline), strict_map_key=True)
    except (ValueError, msgpack.UnpackException) as error:
        raise FrameError(f"a frame is not msgpack: {error}.") from error
    if not isinstance(message, dict):
        raise FrameError(f"a frame holds a {type(message).__name__}, not a map.")
    return message


def _read(fd: int, size: int, deadline: float | None) -> bytes:
    chunks: list[bytes] = []
    while size:
        if deadline is not None:
            left = max(0.0, deadline - time.monotonic())
            if not select.select([fd], [], [], left)[0]:
                raise FrameTimeout("no answer in time.")
        chunk = os.read(fd, min(size, 1 << 20))
        if not chunk:
            raise FrameError("the other end closed the stream.")
        chunks.append(chunk)
        size -= len(chunk)
    return b"".join(chunks)
