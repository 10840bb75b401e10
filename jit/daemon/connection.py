"""One client's connection, as the server has it."""

import asyncio
from dataclasses import dataclass, field

from .protocol import LENGTH, REQUESTS, Record, decode, encode, length_of

FRAME_S = 30.0
"""For the rest of a frame that was begun, and for the greeting."""

_UNSENT_BYTES = 4 << 20  # a client that does not read is let go


@dataclass(eq=False)
class Connection:
    """One client."""

    number: int
    pid: int
    writer: asyncio.StreamWriter
    wanted: set[str] = field(default_factory=set)
    subscribed: bool = False

    def send(self, record: Record) -> None:
        transport = self.writer.transport
        if transport.is_closing():
            return
        self.writer.write(encode(record))
        if transport.get_write_buffer_size() > _UNSENT_BYTES:
            transport.abort()


async def receive(reader: asyncio.StreamReader) -> Record:
    """The next request. Waits for its beginning as long as it takes, for the rest a while."""
    head = await reader.readexactly(LENGTH.size)
    length = length_of(head)
    async with asyncio.timeout(FRAME_S):
        body = await reader.readexactly(length)
    request: Record = decode(body, REQUESTS)
    return request
