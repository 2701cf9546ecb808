"""Which block should go? Policies of eviction side by side over traces: ``python -m perf.eviction``.

Plain implementations, written for reading. A policy is told each use of a block and says whether the block was
cached; where it was not, it makes room and caches it. ``s3backer`` is no model but the slab that ships.
"""

from __future__ import annotations

import heapq
import statistics
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

from perf.trace_files import Access
from perf.workloads import Workload, workloads
from s3backer import _fast

#: Sizes of the cache, in percent of the blocks that a trace touches.
SIZES = (3, 10, 30, 80)


class Use(NamedTuple):
    """A piece of an access, inside one block; bytes [start, stop) of it."""

    block: int
    start: int
    stop: int
    write: bool


class Policy(Protocol):
    """Decides what stays."""

    def use(self, use: Use) -> bool:
        """Take notice; return whether the block was there."""


class LRU:
    """The block that was not used for longest goes."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def use(self, use: Use) -> bool:
        if use.block in self._blocks:
            self._blocks.move_to_end(use.block)
            return True
        if len(self._blocks) == self._size:
            self._blocks.popitem(last=False)
        self._blocks[use.block] = None
        return False


class Clock:
    """A hand goes round and spares, once, what was used since it came by."""

    def __init__(self, size: int) -> None:
        self._slots: list[int] = []
        self._used: dict[int, bool] = {}
        self._size, self._hand = size, 0

    def use(self, use: Use) -> bool:
        hit = use.block in self._used
        if not hit:
            if len(self._slots) < self._size:
                self._slots.append(use.block)
            else:
                while self._used[self._slots[self._hand]]:
                    self._used[self._slots[self._hand]] = False
                    self._hand = (self._hand + 1) % self._size
                del self._used[self._slots[self._hand]]
                self._slots[self._hand] = use.block
                self._hand = (self._hand + 1) % self._size
        self._used[use.block] = True
        return hit


class S3FIFO:
    """As published: small (a tenth), main, ghosts (Yang, Zhang, Qiu, Yue, Rashmi, SOSP 2023)."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._share = max(1, size // 10)
        self._small: deque[int] = deque()
        self._main: deque[int] = deque()
        self._hits: dict[int, int] = {}
        self._ghosts: OrderedDict[int, None] = OrderedDict()

    def use(self, use: Use) -> bool:
        block = use.block
        if block in self._hits:
            self._hits[block] = min(3, self._hits[block] + 1)
            return True
        while len(self._hits) >= self._size:
            self._evict()
        if block in self._ghosts:
            del self._ghosts[block]
            self._main.append(block)
        else:
            self._small.append(block)
        self._hits[block] = 0
        return False

    def _evict(self) -> None:
        if len(self._small) >= self._share or not self._main:
            block = self._small.popleft()
            if self._hits[block] > 1:
                self._hits[block] = 0
                self._main.append(block)
                return
            self._ghosts[block] = None
            if len(self._ghosts) > self._size:
                self._ghosts.popitem(last=False)
        else:
            block = self._main.popleft()
            if self._hits[block]:
                self._hits[block] -= 1
                self._main.append(block)
                return
        del self._hits[block]


class ARC:
    """Once and again used blocks in two LRU lists whose shares follow the ghosts (Megiddo, Modha, FAST 2003)."""

    def __init__(self, size: int) -> None:
        self._size, self._target = size, 0.0
        self._once: OrderedDict[int, None] = OrderedDict()
        self._again: OrderedDict[int, None] = OrderedDict()
        self._once_ghosts: OrderedDict[int, None] = OrderedDict()
        self._again_ghosts: OrderedDict[int, None] = OrderedDict()

    def use(self, use: Use) -> bool:
        block, size = use.block, self._size
        if block in self._once or block in self._again:
            (self._once if block in self._once else self._again).pop(block)
            self._again[block] = None
            return True
        if block in self._once_ghosts:
            self._target = min(size, self._target + max(1, len(self._again_ghosts) / len(self._once_ghosts)))
            self._replace(again=False)
            del self._once_ghosts[block]
            self._again[block] = None
            return False
        if block in self._again_ghosts:
            self._target = max(0, self._target - max(1, len(self._once_ghosts) / len(self._again_ghosts)))
            self._replace(again=True)
            del self._again_ghosts[block]
            self._again[block] = None
            return False
        once, everything = len(self._once) + len(self._once_ghosts), len(self._again) + len(self._again_ghosts)
        if once == size:
            if len(self._once) < size:
                self._once_ghosts.popitem(last=False)
                self._replace(again=False)
            else:
                self._once.popitem(last=False)
        elif once + everything >= size:
            if once + everything == 2 * size:
                self._again_ghosts.popitem(last=False)
            self._replace(again=False)
        self._once[block] = None
        return False

    def _replace(self, *, again: bool) -> None:
        if len(self._once) + len(self._again) < self._size:
            return
        if self._once and (len(self._once) > self._target or (again and len(self._once) == self._target)):
            self._once_ghosts[self._once.popitem(last=False)[0]] = None
        elif self._again:
            self._again_ghosts[self._again.popitem(last=False)[0]] = None
        else:
            self._once_ghosts[self._once.popitem(last=False)[0]] = None


class _Page:
    """A page on CLOCK-Pro's clock: hot, cold, or a test page without data."""

    __slots__ = ("after", "before", "block", "kind", "used")

    def __init__(self, block: int) -> None:
        self.block, self.kind, self.used = block, "cold", False
        self.before = self.after = self


class ClockPro:
    """Hot, cold and test pages on one clock with three hands (Jiang, Chen, Zhang, USENIX 2005)."""

    def __init__(self, size: int) -> None:
        self._size = self._cold_target = size
        self._pages: dict[int, _Page] = {}
        self._count = {"hot": 0, "cold": 0, "test": 0}
        self._hot: _Page | None = None
        self._cold: _Page | None = None
        self._test: _Page | None = None

    def use(self, use: Use) -> bool:
        page = self._pages.get(use.block)
        if page is not None and page.kind != "test":
            page.used = True
            return True
        if page is None:
            page = _Page(use.block)
        else:
            self._cold_target = min(self._size, self._cold_target + 1)
            self._remove(page)
            self._count["test"] -= 1
            page.kind, page.used = "hot", False
        while self._count["hot"] + self._count["cold"] >= self._size:
            self._move_cold()
        self._insert(page)
        self._count[page.kind] += 1
        return False

    def _insert(self, page: _Page) -> None:
        self._pages[page.block] = page
        if self._hot is None:
            page.before = page.after = page
            self._hot = self._cold = self._test = page
            return
        page.after, page.before = self._hot, self._hot.before
        page.before.after = page.after.before = page
        if self._cold is self._hot:
            self._cold = page

    def _remove(self, page: _Page) -> None:
        del self._pages[page.block]
        if page.after is page:
            self._hot = self._cold = self._test = None
            return
        if self._hot is page:
            self._hot = page.after
        if self._cold is page:
            self._cold = page.after
        if self._test is page:
            self._test = page.after
        page.before.after, page.after.before = page.after, page.before

    def _become(self, page: _Page, kind: str) -> None:
        self._count[page.kind] -= 1
        self._count[kind] += 1
        page.kind = kind

    def _move_cold(self) -> None:
        page = self._cold
        assert page is not None
        if page.kind == "cold":
            if page.used:
                page.used = False
                self._become(page, "hot")
            else:
                self._become(page, "test")
                while self._count["test"] > self._size:
                    self._move_test()
        # The page itself may have been removed, and the hand moved with it.
        if self._cold is page:
            self._cold = page.after
        while self._count["hot"] > self._size - self._cold_target and self._count["hot"]:
            self._move_hot()

    def _move_hot(self) -> None:
        if self._hot is self._test:
            # It pushes the test hand before it, so that no page is on test for longer than a round.
            self._move_test()
        page = self._hot
        assert page is not None
        self._hot = page.after
        if page.kind == "hot":
            if page.used:
                page.used = False
            else:
                self._become(page, "cold")

    def _move_test(self) -> None:
        page = self._test
        assert page is not None
        self._test = page.after
        if page.kind == "test":
            self._count["test"] -= 1
            self._remove(page)
            self._cold_target = max(1, self._cold_target - 1)


class Shipped:
    """The slab, as the cache uses it."""

    def __init__(self, size: int, block_size: int) -> None:
        self._slab = _fast.Slab(block_size, size, size)
        self._block_size = block_size
        self._buffer = memoryview(bytearray(block_size))

    def use(self, use: Use) -> bool:
        offset = use.block * self._block_size + use.start
        if use.write:
            hit = self._slab.contains(use.block)
            self._slab.write_zeros(offset, use.stop - use.start, 0.0)
            if not self._slab.fully_valid(use.block):
                self._slab.fill(use.block, None)
            self._slab.begin_store(use.block)
            self._slab.end_store(use.block, True)
            return hit
        if not self._slab.read(offset, self._buffer[: use.stop - use.start]):
            return True
        self._slab.fill(use.block, None)
        return False


POLICIES: dict[str, Callable[[int, int], Policy]] = {
    "LRU": lambda size, _: LRU(size),
    "CLOCK": lambda size, _: Clock(size),
    "ARC": lambda size, _: ARC(size),
    "CLOCK-Pro": lambda size, _: ClockPro(size),
    "S3-FIFO": lambda size, _: S3FIFO(size),
    "s3backer": Shipped,
}


def pieces(accesses: Sequence[Access], block_size: int) -> Iterator[Use]:
    """Divide accesses at the borders of blocks."""
    for offset, length, write in accesses:
        for block, start, stop in _fast.split(offset, length, block_size):
            yield Use(block, start, stop, write)


def costs(use: Use, block_size: int) -> bool:
    """Whether it needs the block from the bucket where it is not cached: all but a write of the whole block."""
    return not (use.write and use.stop - use.start == block_size)


def misses(policy: Policy, uses: Sequence[Use], block_size: int) -> int:
    """Count the blocks that have to be fetched."""
    return sum([not policy.use(use) and costs(use, block_size) for use in uses])


def fewest_misses(uses: Sequence[Use], size: int, block_size: int) -> int:
    """Count them for the policy that knows the future: what is needed last goes (Belady)."""
    never = len(uses)
    following: dict[int, int] = {}
    needed = [never] * never
    for position in range(never - 1, -1, -1):
        block = uses[position].block
        needed[position] = following.get(block, never)
        following[block] = position if costs(uses[position], block_size) else never
    cached: dict[int, int] = {}
    farthest: list[tuple[int, int]] = []
    count = 0
    for position, use in enumerate(uses):
        if use.block not in cached:
            count += costs(use, block_size)
            while len(cached) >= size:
                when, block = heapq.heappop(farthest)
                if cached.get(block) == -when:
                    del cached[block]
        cached[use.block] = needed[position]
        heapq.heappush(farthest, (-needed[position], use.block))
    return count


class Row(NamedTuple):
    """One trace and size: the percentage of uses that needed the bucket, of each policy and at best."""

    workload: str
    blocks: int
    percent: int
    ratios: dict[str, float]
    best: float


def compare(workload: Workload, sizes: Sequence[int] = SIZES) -> Iterator[Row]:
    """Run every policy over one workload."""
    uses = list(pieces(workload.accesses, workload.block_size))
    blocks = len({use.block for use in uses})
    for percent in sizes:
        size = max(8, blocks * percent // 100)
        counts = {
            name: misses(make(size, workload.block_size), uses, workload.block_size) for name, make in POLICIES.items()
        }
        best = fewest_misses(uses, size, workload.block_size)
        share = 100 / len(uses)
        yield Row(workload.name, blocks, percent, {name: n * share for name, n in counts.items()}, best * share)


def ranks(rows: Sequence[Row]) -> dict[str, float]:
    """Return the mean rank of each policy, 1 the best; equal results share one."""
    result: dict[str, list[float]] = {name: [] for name in POLICIES}
    for row in rows:
        for name, ratio in row.ratios.items():
            better = sum(other < ratio for other in row.ratios.values())
            equal = sum(other == ratio for other in row.ratios.values())
            result[name].append(better + (equal + 1) / 2)
    return {name: statistics.mean(values) for name, values in result.items()}


def excess(rows: Sequence[Row]) -> dict[str, float]:
    """Return how many times as many fetches as at best, each policy's geometric mean."""
    return {name: statistics.geometric_mean([row.ratios[name] / row.best for row in rows]) for name in POLICIES}


def table(rows: Sequence[Row]) -> str:
    """Return everything as a Markdown table."""
    lines = [
        "| trace | cache | " + " | ".join(POLICIES) + " | best |",
        "|---|--:|" + "--:|" * (len(POLICIES) + 1),
    ]
    for row in rows:
        least = min(row.ratios.values())
        cells = [f"**{r:.2f}**" if r == least else f"{r:.2f}" for r in row.ratios.values()]
        lines.append(f"| {row.workload} | {row.percent} % | {' | '.join(cells)} | {row.best:.2f} |")
    for title, values, best in (("mean rank", ranks(rows), ""), ("times the best", excess(rows), "1.000")):
        shown = [f"{value:.2f}" if title == "mean rank" else f"{value:.3f}" for value in values.values()]
        lines.append(f"| **{title}** | | {' | '.join(shown)} | {best} |")
    return "\n".join(lines)


def main(wanted: Sequence[str]) -> None:
    rows: list[Row] = []
    for workload in workloads():
        if not wanted or any(name in workload.name for name in wanted):
            rows.extend(compare(workload))
            print(f"{workload.name}: {len(workload.accesses)} accesses, {rows[-1].blocks} blocks", file=sys.stderr)
    print(table(rows))


if __name__ == "__main__":
    main(sys.argv[1:])
