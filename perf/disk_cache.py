"""Which copy should go from the disk cache, and are written blocks worth keeping? ``python -m perf.disk_cache``.

The traces of perf/workloads.py go through a memory cache of 3 % of the blocks that they touch (the slab that ships);
what misses there comes to a disk cache of 10, 30 or 80 %. A write comes there once for all that follow each other
closely. Printed: how many times as many blocks each policy fetches as the best one does for the same trace and size,
geometric means, if what is written is kept, and if it only replaces what is there.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator, Sequence

from perf.eviction import ARC, LRU, S3FIFO, Clock, Policy, Shipped, Use, costs, pieces
from perf.workloads import Workload, workloads
from s3backer.disk_cache_index import CopyIndex

_MEMORY_PERCENT = 3
_SIZES = (10, 30, 80)
#: Fewer reads from the disk than this say nothing.
_LEAST_READS = 50


class ShippedIndex:
    """The index of the disk cache."""

    def __init__(self, size: int) -> None:
        self._index = CopyIndex(size, size)

    def use(self, use: Use) -> bool:
        if self._index.find(use.block) is not None:
            self._index.use(use.block)
            return True
        if self._index.place(1) is not None:
            self._index.settle(use.block, 1)
        return False


POLICIES: dict[str, Callable[[int], Policy]] = {
    "LRU": LRU,
    "CLOCK": Clock,
    "ARC": ARC,
    "S3-FIFO": S3FIFO,
    "s3backer": ShippedIndex,
}


def below_memory(workload: Workload) -> tuple[list[Use], int]:
    """Return what comes to the disk cache, and how many blocks the workload touches."""
    uses = list(pieces(workload.accesses, workload.block_size))
    blocks = len({use.block for use in uses})
    size = max(8, blocks * _MEMORY_PERCENT // 100)
    memory = Shipped(size, workload.block_size)
    stored: dict[int, int] = {}
    found = []
    for number, use in enumerate(uses):
        if not memory.use(use) and costs(use, workload.block_size):
            found.append(Use(use.block, 0, 1, False))
        if use.write:
            if number - stored.get(use.block, -size - 1) > size:
                found.append(Use(use.block, 0, 1, True))
            stored[use.block] = number
    return found, blocks


def fetches(make: Callable[[int], Policy], size: int, uses: Sequence[Use], *, keep_written: bool) -> int:
    """Count the blocks that have to be fetched."""
    policy = make(size)
    return sum(not policy.use(use) and not use.write for use in uses if keep_written or not use.write)


def compare(workload: Workload) -> Iterator[dict[str, int]]:
    """Run every policy over one workload, for each size."""
    uses, blocks = below_memory(workload)
    if sum(not use.write for use in uses) < _LEAST_READS:
        return
    for percent in _SIZES:
        size = max(12, blocks * percent // 100)
        yield {
            name + ("" if keep_written else ", reads only"): fetches(make, size, uses, keep_written=keep_written)
            for keep_written in (True, False)
            for name, make in POLICIES.items()
        }


def main(wanted: Sequence[str]) -> None:
    rows: list[dict[str, int]] = []
    for workload in workloads():
        if not wanted or any(name in workload.name for name in wanted):
            rows += compare(workload)
            print(workload.name, file=sys.stderr)
    for name in rows[0]:
        times = [max(1, row[name]) / max(1, *[min(row.values())]) for row in rows]
        print(f"{name:24}{statistics.geometric_mean(times):6.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
