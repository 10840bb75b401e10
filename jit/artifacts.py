"""Compiled binaries: from the store, or compiled into it once for all processes."""

import hashlib
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future, as_completed
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from ..cache.keys import Key
from .binary import Binary
from .compile import CompilePool
from .errors import CompileError, NotReady
from .keys import refusal_key
from .shelf import Body, Shelf
from .stats import Stats


@dataclass
class Artifacts:
    """The artifacts of one cache. `hold(key)` makes this the only process to build for a key."""

    shelf: Shelf
    pool: Callable[[], CompilePool]
    hold: Callable[[Key], AbstractContextManager[None]]
    stats: Stats
    _compilations: dict[str, Future[dict[str, Any]]] = field(default_factory=dict)

    def get(self, binaries: Sequence[Binary]) -> tuple[Body, ...]:
        """The artifacts of `binaries`, compiled now where need be. Raises NotReady."""
        return tuple(self._one(binary) for binary in binaries)

    def start(self, binary: Binary) -> Body | Future[dict[str, Any]]:
        """The stored artifact, or its compilation, begun in this process at most once."""
        body = self.shelf.get(binary.key)
        return self._compilation(binary) if body is None else body

    def keep(self, binary: Binary, answer: Body, *, candidate: bool = False) -> Body:
        """Store a compiled binary, unless these very bytes are stored for good already."""
        digest = hashlib.blake2b(answer["cubin"], digest_size=20).hexdigest()
        stored = self.shelf.get(binary.key)
        if stored is not None and stored["cubin_digest"] == digest and not stored["candidate"]:
            return stored
        meta = {
            "op": binary.op,
            "target": binary.target,
            "module": binary.module,
            "bytes": len(answer["cubin"]),
            "candidate": candidate,
        }
        body = {**answer, "cubin_digest": digest, "candidate": candidate}
        return self.shelf.put(binary.key, body, str(binary), meta)

    def compile_all(
        self,
        binaries: Iterable[Binary],
        on_done: Callable[[Binary, str | None], None],
        candidates: Collection[Binary] = (),
    ) -> None:
        """Compile and store what is missing, on all workers; nothing is checked or tuned.

        `on_done(binary, error)` is called for each one as it is ready, stored ones first. Of
        `candidates` those that win no tune are dropped by the first `warm` on a card.
        """
        missing: list[Binary] = []
        for binary in {b.key.digest: b for b in binaries}.values():
            if self.shelf.store.has(binary.key):
                on_done(binary, None)
            else:
                missing.append(binary)
        running = {self._compilation(binary): binary for binary in missing}
        for future in as_completed(running):
            binary, error = running[future], future.exception()
            if error is None:
                self.keep(binary, future.result(), candidate=binary in candidates)
            elif not isinstance(error, CompileError):
                raise error
            on_done(binary, str(error) if error else None)

    def drop_candidates(self, ops: Collection[str]) -> int:
        """Remove the binaries of these ops that were compiled to be tried and won nothing."""
        store = self.shelf.store
        losers = [
            header
            for header in store.headers("artifact")
            if header.meta.get("candidate") and header.meta.get("op") in ops
        ]
        return sum(store.remove(header) is not None for header in losers)

    def forget(self) -> None:
        """Let go of what was compiled to be tried: of a tune only the winner's binaries matter."""
        self._compilations = {d: f for d, f in self._compilations.items() if not f.done()}

    def _one(self, binary: Binary) -> Body:
        body = self.shelf.get(binary.key)
        if body is None:
            with self.hold(binary.key):
                body = self.shelf.get(binary.key)
                if body is None:
                    try:
                        body = self._compilation(binary).result()
                    except CompileError as error:
                        raise NotReady("compile_failed", str(error)) from error
                    return self.keep(binary, body)
        return self.keep(binary, body) if body.get("candidate") else body

    def _compilation(self, binary: Binary) -> Future[dict[str, Any]]:
        """The compilation of a binary, under way or finished, in this process once.

        One that is known not to compile has failed already.
        """
        digest = binary.key.digest
        if digest not in self._compilations or self._compilations[digest].cancelled():
            self._compilations[digest] = self._refused(binary) or self._compiling(binary)
        return self._compilations[digest]

    def _compiling(self, binary: Binary) -> Future[dict[str, Any]]:
        self.stats.count("compiles")
        future = self.pool().submit(binary)
        future.add_done_callback(lambda done: self._note_refusal(binary, done))
        return future

    def _refused(self, binary: Binary) -> Future[dict[str, Any]] | None:
        body = self.shelf.get(refusal_key(binary.key))
        if body is None:
            return None
        failed: Future[dict[str, Any]] = Future()
        failed.set_exception(CompileError(body["reason"]))
        return failed

    def _note_refusal(self, binary: Binary, done: Future[dict[str, Any]]) -> None:
        """Remember what will not compile next time either."""
        error = None if done.cancelled() else done.exception()
        if isinstance(error, CompileError) and error.lasting:
            meta = {"target": binary.target, "op": binary.op}
            self.shelf.put(refusal_key(binary.key), {"reason": str(error)}, str(binary), meta)
