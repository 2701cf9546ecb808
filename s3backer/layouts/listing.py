"""Listing the objects of a volume with several requests at once, each in its own range of keys.

    position     the first 8 hex digits of a name below the prefix: the block, or with hashed names its hash
    stretch      positions [start, stop) that one worker lists, a few pages long at the density it saw last
    free         the stretches that nobody has taken yet

Nobody knows beforehand where the objects are. So the first page is listed alone; who finds more in its stretch than
it was meant to have gives the rest back, and who finds less takes what is free behind it. Names that have no position
are stepped over. To list n pages takes a few requests more than n.
"""

from __future__ import annotations

import threading
from bisect import insort
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from s3backer.stores.base import ListPage

#: Positions there are.
POSITIONS = 1 << 32
#: Pages that a stretch is meant to have.
_PAGES = 4
_HEX = "0123456789abcdef"

#: Returns for a page the ranges of positions of which it is the listing: its keys there are to be taken.
Claim = Callable[[ListPage], list[range]]


def position(name: str) -> int | None:
    """Return the position of a name below the prefix, None where it has none."""
    digits = _digits(name)
    return int(digits, 16) if len(digits) == 8 else None


def is_in(name: str, places: list[range]) -> bool:
    """Return whether a name has a position, in one of these ranges."""
    place = position(name)
    return place is not None and any(place in some for some in places)


def before(place: int) -> str:
    """Return a name after which the names at this and later positions come, and none at earlier ones."""
    digits = f"{place:08x}"
    short = digits.rstrip("0")
    return f"{place - 1:08x}g" if short == digits else short


def listed_up_to(name: str, *, exact: bool) -> int:
    """Return the position before which there is nothing left to list once ``name`` was.

    ``exact``: names that matter are 8 digits and nothing else, so that each has a position of its own.
    """
    digits = _digits(name)
    count = len(digits)
    if count == 8:
        return int(digits, 16) + (exact or name[8:9] > "-")
    following = name[count : count + 1]
    digit = next((h for h in _HEX if h > following), None)
    if digit is not None:
        return int((digits + digit).ljust(8, "0"), 16)
    return (int(digits or "0", 16) + 1) << 4 * (8 - count)


def _digits(name: str) -> str:
    count = 0
    while count < 8 and name[count : count + 1] in _HEX and count < len(name):
        count += 1
    return name[:count]


class Stretches:
    """Which positions below ``end`` are still to be listed. Thread-safe."""

    def __init__(self, end: int) -> None:
        self._changed = threading.Condition()
        self._free = [(0, end)]
        self._busy = 0

    def take(self, most: int) -> tuple[int, int] | None:
        """Take the first stretch, of at most so many positions; None once all is listed. ``done`` has to follow."""
        with self._changed:
            # Whoever is busy may still leave something to others.
            while not self._free and self._busy:
                self._changed.wait()
            if not self._free:
                return None
            self._busy += 1
            start, stop = self._free.pop(0)
            if stop - start > most:
                self._free.insert(0, (start + most, stop))
            return start, min(stop, start + most)

    def take_listed(self, start: int, stop: int) -> list[range]:
        """Take what is free in [start, stop): a page has told about it."""
        with self._changed:
            free, taken = [], []
            for first, last in self._free:
                some = range(max(first, start), min(last, stop))
                taken += [some] if some else []
                free += [(a, b) for a, b in ((first, min(last, start)), (max(first, stop), last)) if a < b]
            self._free = free
            return taken

    def give(self, start: int, stop: int) -> None:
        """Leave a stretch to others."""
        with self._changed:
            insort(self._free, (start, stop))
            self._changed.notify()

    def done(self) -> None:
        """The stretch taken last is listed, or given up."""
        with self._changed:
            self._busy -= 1
            self._changed.notify_all()


class _Stretch:
    """A stretch while it is listed. ``name``: the last one that needs no listing any more."""

    def __init__(self, stretches: Stretches, prefix: str, start: int, stop: int, end: int, exact: bool) -> None:
        self.start, self.stop, self.name = start, stop, before(start)
        #: Positions that the last page told about.
        self.width = 1
        self._stretches = stretches
        self._prefix = prefix
        self._end = end
        self._exact = exact
        self._listed = start

    def claim(self, page: ListPage) -> list[range]:
        """Return what a page tells about, and take what is free there."""
        listed = self._end
        if page.truncated:
            listed = min(listed, listed_up_to(self._name_of(page), exact=self._exact))
        self._listed = min(listed, self.stop)
        # A page may be full of one position and not be all of it.
        own = range(self.start, max(self._listed, self.start + 1))
        return [own, *self._stretches.take_listed(self.stop, listed)]

    def go_on(self, page: ListPage, pages: int) -> None:
        """Step behind a page; leave what is more than ``pages`` further ones to others."""
        last = self._name_of(page) if page.truncated else ""
        if self._listed == self.start:
            self.name = last
            return
        self.width = self._listed - self.start
        self.start, self.name = self._listed, before(self._listed)
        if position(last) != self._listed:
            # Names without a position may come between.
            self.name = max(self.name, last)
        if self.stop - self.start > pages * self.width:
            self._stretches.give(self.start + pages * self.width, self.stop)
            self.stop = self.start + pages * self.width

    def _name_of(self, page: ListPage) -> str:
        return page.entries[-1].key[len(self._prefix) :]


def walk(
    prefix: str,
    fetch: Callable[[str, Claim], ListPage],
    *,
    end: int = POSITIONS,
    exact: bool = False,
    threads: int = 1,
    stop_asked: Callable[[], bool] = lambda: False,
) -> bool:
    """List everything at positions below ``end``; return False if it was stopped.

    ``fetch(start_after, claim)`` lists the page after that key, asks ``claim`` which of its keys to take, takes them,
    and returns the page. It is called by ``threads`` threads at once; the first exception is raised.
    """
    stretches = Stretches(end)
    failed = threading.Event()

    def list_one(start: int, stop: int, *, alone: bool = False) -> tuple[int, bool]:
        """List a stretch, or one page of it; return the positions of a page, and whether it was not stopped."""
        stretch = _Stretch(stretches, prefix, start, stop, end, exact)
        while stretch.start < stretch.stop:
            if failed.is_set() or stop_asked():
                return stretch.width, False
            page = fetch(prefix + stretch.name, stretch.claim)
            stretch.go_on(page, 0 if alone else _PAGES)
        return stretch.width, True

    def work(width: int) -> bool:
        while (stretch := stretches.take(_PAGES * width)) is not None:
            try:
                width, whole = list_one(*stretch)
            except BaseException:
                failed.set()
                raise
            finally:
                stretches.done()
            if not whole:
                return False
        return True

    width, whole = list_one(*(stretches.take(end) or (0, 0)), alone=True)
    stretches.done()
    if not whole or threads == 1:
        return whole and work(width)
    with ThreadPoolExecutor(threads, thread_name_prefix="s3backer-list") as pool:
        results = [future.result() for future in [pool.submit(work, width) for _ in range(threads)]]
    return all(results)
