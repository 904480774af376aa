"""Claims on a store without locks: numbered leases, built on exclusive creation alone.

    <place>/claims/00000001.json    the first lease: who; created with If-None-Match; never changed
    <place>/claims/00000001.beat    rewritten now and then while its holder lives; says "released" at the end
    <place>/claims/newest           where the search for the newest number begins; what counts is which .json exist

A process that sees the newest lease released, or without a beat for `stale` seconds by the store's clock, creates the
next number: only one process can. A holder that could not renew its beat for `stale - margin` seconds by its own clock
stops by itself (`Lease.lost`), before another may begin. Nothing here is ever deleted: numbers stay dense, so that the
newest is found by name and not by a listing, which may be stale.
"""

import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

from orchestrator.storage.backends.base import Claim, ClaimLost, Entry, as_object, has_ended, holder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LeaseTimes:
    """Seconds."""

    beat: float = 15.0
    """Between renewals."""
    stale: float = 90.0
    """Without a renewal until others take over."""
    margin: float = 30.0
    """How much earlier the holder itself stops: a store's times are whole seconds, and a request on its way may arrive
    late."""

    def __post_init__(self) -> None:
        if not (0 < self.beat < self.stale - self.margin and self.margin > 1):
            raise ValueError(f"beat < stale - margin and margin > 1 are needed, got {self}")


class Store(Protocol):
    """What leases need of a store."""

    def create(self, name: str, content: bytes) -> bool: ...
    def read(self, name: str) -> bytes: ...
    def read_with_age(self, name: str) -> tuple[bytes, float]: ...
    def write(self, name: str, content: bytes) -> None: ...
    def look(self, name: str) -> Entry | None: ...


def clock() -> float:
    """Seconds, including those that the machine sleeps: a laptop that was shut has lost its leases."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boottime is None else time.clock_gettime(boottime)


class Lease(Claim):
    """A lease that a thread renews."""

    def __init__(
        self, store: Store, place: str, number: int, times: LeaseTimes, renewed: float, owner: dict[str, Any]
    ) -> None:
        super().__init__(True)
        self.number = number
        self._store, self._place, self._times, self._owner = store, place, times, owner
        self._renewed = renewed
        """When the request of the last renewal that succeeded was begun."""
        self._lost = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"lease of {place}", daemon=True)
        self._thread.start()

    def lost(self) -> bool:
        if clock() - self._renewed > self._times.stale - self._times.margin:
            self._lost = True
        return self._lost

    def confirm(self) -> None:
        self.check()
        if self._store.look(_claim(self._place, self.number + 1)) is not None:
            self._lost = True
        self.check()

    def insist(self, write: Callable[[], None]) -> None:
        """One attempt must end within `margin`, or it could land after another process has taken over."""
        for pause in (1.0, 2.0, 4.0, 8.0):
            self.check()
            try:
                return write()
            except ClaimLost:
                raise
            except OSError as error:
                logger.warning("%s can't be written to (%s); retrying", self._place, error)
                self._ended.wait(pause)
        self.check()
        write()

    def _beat(self) -> None:
        while not self._ended.wait(self._times.beat):
            self.renew()

    def renew(self) -> None:
        """Write a beat; a failure is only logged, and `lost` becomes true after too many."""
        began = clock()
        try:
            self.confirm()
            self._store.write(_beat_name(self._place, self.number), json.dumps(self._owner).encode())
        except ClaimLost:
            return
        except OSError as error:
            logger.warning("the lease on %s can't be renewed (%s)", self._place, error)
            return
        if not self.lost():  # Once lost it stays lost: another process may have seen it stale.
            self._renewed = began

    def release(self) -> None:
        """End the lease, so that others need not wait until it is stale."""
        self._ended.set()
        self._thread.join()  # A renewal after the release would undo it.
        if not self.lost():
            try:
                released = self._owner | {"released": True}
                self._store.write(_beat_name(self._place, self.number), json.dumps(released).encode())
            except OSError as error:
                logger.warning("%s can't be released (%s); others wait until it is stale", self._place, error)
        self._lost = True


@contextmanager
def lease(
    store: Store, place: str, times: LeaseTimes, before: Callable[[int], Any] = lambda number: None
) -> Iterator[Claim]:
    """Claim a place, without waiting.

    Args:
        before: called with the number between the check of the last lease and the creation of the next, for tests.
    """
    number = newest(store, place)
    if number and _is_held(store, place, number, times):
        yield Claim(False)
        return
    before(number + 1)
    owner = holder() | {"token": uuid.uuid4().hex}
    began = clock()
    if not store.create(_claim(place, number + 1), json.dumps(owner).encode()):
        yield Claim(False)
        return
    held = Lease(store, place, number + 1, times, began, owner)
    try:
        with suppress(OSError):  # Only saves requests.
            store.write(_hint(place), str(number + 1).encode())
        yield held
    finally:
        held.release()


def is_leased(store: Store, place: str, times: LeaseTimes) -> bool:
    """Whether some process has a lease on a place."""
    number = newest(store, place)
    return number > 0 and _is_held(store, place, number, times)


def owner_of(store: Store, place: str) -> dict[str, Any]:
    """The newest lease's owner; empty where there was none."""
    number = newest(store, place)
    return as_object(store.read(_claim(place, number))) if number else {}


def newest(store: Store, place: str) -> int:
    """The newest number, 0 where there is none, by a doubling search over names."""
    low = 0
    with suppress(FileNotFoundError, ValueError):
        low = int(store.read(_hint(place)))
    step = 1
    while store.look(_claim(place, low + step)) is not None:
        low, step = low + step, 2 * step
    while step > 1:
        step //= 2
        if store.look(_claim(place, low + step)) is not None:
            low += step
    return low


def _is_held(store: Store, place: str, number: int, times: LeaseTimes) -> bool:
    try:
        content, age = store.read_with_age(_beat_name(place, number))
    except FileNotFoundError:
        content, age = store.read_with_age(_claim(place, number))
    owner = as_object(content)
    return not owner.get("released") and age <= times.stale and not has_ended(owner)


def _claim(place: str, number: int) -> str:
    return f"{place}/claims/{number:08d}.json"


def _beat_name(place: str, number: int) -> str:
    return f"{place}/claims/{number:08d}.beat"


def _hint(place: str) -> str:
    return f"{place}/claims/newest"
