"""Group commit: one thread brings to master, with one push, all that came since the last.

A document is in the outbox before it comes here, so that nothing is lost whatever happens to
the server; whoever waits for it holds a future and no thread. What master did not take now is
tried again by itself.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from annoris.errors import AnnorisError
from annoris.model import Deadline, Draft, Receipt
from annoris.server.logs import logger, warn
from annoris.server.pool import Pool

_REMEMBERED = 10_000  # receipts; older ones are found on master
_AGAIN_SECONDS = (15.0, 300.0)  # the first and the longest pause after a failure
_GATHER_SECONDS = 1.0  # at most


class Courier(threading.Thread):
    """``watch`` is told of each delivery: the receipts and how many seconds they took."""

    def __init__(self, pool: Pool, watch: Callable[[list[Receipt], float], None]) -> None:
        super().__init__(name="courier", daemon=True)
        self._apart = 60.0 / pool.settings.server.pushes  # seconds between the starts of rounds
        self._next = 0.0  # when one may start, by the monotonic clock
        self._pool = pool
        self._watch = watch
        self._turn = threading.Condition()
        self._waiting: list[tuple[Draft, Future[Receipt]]] = []
        self._exact: set[str] = set()  # whose owner waits, and wants no copy
        self._coming = self._carried = 0
        self._took = _GATHER_SECONDS  # the last delivery
        self._receipts: OrderedDict[str, Receipt] = OrderedDict()
        self._pause = 0.0  # before the outbox is tried again; 0: it is empty
        self._stopping = False

    def deliver(self, draft: Draft, *, exact: bool = False) -> Future[Receipt]:
        """A receipt, once it is known what became of the draft; never cancel it.

        ``exact``: where master moved on, the draft is dropped and its receipt says ``outdated``,
        unless nobody waits any more (``leave``).
        """
        future: Future[Receipt] = Future()
        with self._turn:
            self._waiting.append((draft, future))
            if exact:
                self._exact.add(draft.key)
            self._turn.notify()
        return future

    @contextmanager
    def expecting(self) -> Iterator[None]:
        """While a document is taken in, a delivery waits for it; no longer than the last took."""
        with self._turn:
            self._coming += 1
        try:
            yield
        finally:
            with self._turn:
                self._coming -= 1
                if self._waiting:  # else nothing new came of it, and a pause goes on
                    self._turn.notify()

    def leave(self, draft: Draft) -> bool:
        """Do not wait for an exact draft: it is now one like all; False when it is decided."""
        with self._turn:
            known = draft.key in self._exact
            self._exact.discard(draft.key)
            return known

    def remind(self) -> None:
        """Say that others left something in the outbox: it is tried now, and again later."""
        with self._turn:
            if not self._pause:
                self._pause = _AGAIN_SECONDS[0]
                self._turn.notify()

    @property
    def queue(self) -> int:
        """How many documents wait for a push or are being pushed."""
        return len(self._waiting) + self._carried

    def receipt(self, key: str) -> Receipt | None:
        """What became of a draft that was delivered by this process, not too long ago."""
        with self._turn:
            return self._receipts.get(key)

    def stop(self, seconds: float) -> None:
        """Deliver what waits and end; what takes longer stays in the outbox."""
        with self._turn:
            self._stopping = True
            self._turn.notify()
        self.join(seconds)

    def run(self) -> None:
        self._pause = _AGAIN_SECONDS[0] if self._left() else 0.0
        if self._pause:
            self._round([])
        while True:
            with self._turn:
                if not (self._waiting or self._stopping):
                    self._turn.wait(self._pause or None)
                # What comes while these wait goes along.
                self._turn.wait_for(lambda: self._stopping, self._next - time.monotonic())
                patience = min(self._took, _GATHER_SECONDS)
                self._turn.wait_for(lambda: self._stopping or not self._coming, patience)
                batch, self._waiting = self._waiting, []
                self._carried = len(batch)
                ending = self._stopping and not batch
            if batch or self._pause:
                self._round(batch)
            self._carried = 0
            if ending:
                return

    def _round(self, batch: list[tuple[Draft, Future[Receipt]]]) -> None:
        """One delivery. What others left in the outbox goes along."""
        started = time.monotonic()
        self._next = started + self._apart
        try:
            receipts = self._carry([draft for draft, _ in batch])
        except Exception as error:  # noqa: BLE001 - whoever waits must hear of it, and the thread live
            logger.exception("delivery failed")
            self._slower()
            for draft, future in batch:
                self.leave(draft)
                future.set_exception(error)
            return
        self._took = time.monotonic() - started
        self._watch(list(receipts.values()), self._took)
        for draft, future in batch:
            heard = self.leave(draft)
            if receipts[draft.key].state != "outdated":
                future.set_result(receipts[draft.key])
            elif heard:
                self._drop(draft, receipts[draft.key], future)
            else:  # whoever was told 202 gets a copy
                with self._turn:
                    self._waiting.append((draft, future))

    def _drop(self, draft: Draft, receipt: Receipt, future: Future[Receipt]) -> None:
        """Forget an outdated draft, unless somebody else delivered it just now."""
        try:
            with self._pool.lend() as archive:
                with archive.master.lock(Deadline(archive.settings.master.push_seconds)):
                    if draft.key in archive.outbox.waiting():
                        archive.outbox.drop(draft)
                    else:
                        receipt = archive.fate(draft.key)
                archive.follower.overlay()
        except (AnnorisError, OSError) as error:  # then it becomes a copy later
            future.set_exception(error)
        else:
            future.set_result(receipt)

    def _carry(self, drafts: list[Draft]) -> dict[str, Receipt]:
        with self._pool.lend() as archive:
            known = {draft.key for draft in drafts}
            if self._pause:
                drafts = drafts + [one for one in archive.outbox.read()[0] if one.key not in known]
            with self._turn:
                exact = known & self._exact
            delivered = archive.deliver(drafts, exact=exact)
            receipts = dict(zip([draft.key for draft in drafts], delivered, strict=True))
            left = bool(archive.outbox.batches())
        with self._turn:
            for key, receipt in receipts.items():
                self._receipts[key] = receipt
            while len(self._receipts) > _REMEMBERED:
                self._receipts.popitem(last=False)
        if left and any(receipt.state in ("queued", "refused") for receipt in receipts.values()):
            self._slower()
        elif not left:
            self._pause = 0.0
        return receipts

    def _slower(self) -> None:
        first, longest = _AGAIN_SECONDS
        self._pause = min(self._pause * 2, longest) if self._pause else first
        warn("outbox waits", again_in=self._pause)

    def _left(self) -> bool:
        with self._pool.lend() as archive:
            return bool(archive.outbox.batches())


def fate(pool: Pool, courier: Courier, key: str) -> Receipt:
    """What became of a draft, from memory, the outbox or, on any replica, master's history.

    Raises NotFound for a key that nobody gave.
    """
    found = courier.receipt(key)
    if found and found.state not in ("queued", "refused"):  # which may have changed since
        return found
    with pool.lend() as archive:
        return archive.fate(key)
