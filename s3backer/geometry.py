"""Sizes: which ones a volume can have, and how the memory budget is divided among its parts."""

from __future__ import annotations

from dataclasses import dataclass

from s3backer import _fast, _journal
from s3backer.disk_cache_file import slot_size
from s3backer.errors import UsageError
from s3backer.layouts.classic import MAX_BLOCKS
from s3backer.units import exact_size, told_size

MIB = 1 << 20
#: Memory for the presence map and the ETags, as a share of the budget: 8 MiB each know which blocks of 4 TiB are
#: there and the ETags of 64 GiB, in blocks of 128 KiB.
_KNOWLEDGE_SHARE = 16
#: Memory for the index of a disk cache, as a share of the budget, and for what waits to be written there, beside two
#: copies: 256 MiB suffice for 84 GiB in blocks of 128 KiB.
_INDEX_SHARE, _QUEUE_SHARE = 16, 64
#: Memory for the map of the journal, as a share of the budget: 256 MiB let 200 000 writes wait to be stored.
_JOURNAL_SHARE = 16
#: Entries of the smallest map, and bytes of memory that one takes at most.
_LEAST_ENTRIES = 1024
_ENTRY_BYTES = -(-_journal.map_bytes((1 << 20) + 1) // (1 << 20))
#: Fewer slots than this are no cache.
_MIN_SLOTS = 4
#: The slab can number no more, and no machine has memory for them.
_MOST_SLOTS = 1 << 30
#: Copies of a block under way: as written, as copied, compressed and encrypted.
_MOST_COPIES = 4


def check_geometry(size: int, block_size: int) -> None:
    """Raise UsageError unless a volume can have this size and block size (bytes)."""
    if block_size < 512 or block_size & (block_size - 1):
        raise UsageError(
            f"block size {exact_size(block_size)} is not a power of two of at least 512 bytes",
            hint="Use for example 128KiB.",
        )
    if size <= 0:
        raise UsageError(f"size {size} is not a size for a volume", hint="Give a size such as 10GiB.")
    if size % block_size:
        raise UsageError(
            f"size {exact_size(size)} is not a multiple of the block size {exact_size(block_size)}",
            hint=f"Sizes that fit are {exact_size(size - size % block_size)} and "
            f"{exact_size(size + block_size - size % block_size)}."
            if size > block_size
            else f"The smallest is {exact_size(block_size)}.",
        )
    if size // block_size > MAX_BLOCKS:
        raise UsageError(
            f"size {exact_size(size)} needs {size // block_size} blocks of {exact_size(block_size)}, "
            f"at most {MAX_BLOCKS} are possible",
            hint="Use a larger block size.",
        )


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """How the byte budget is divided. ``disk_index`` and ``disk_queue``: bytes for a disk cache, 0 without one.

    ``journal_entries``: of the journal's map.
    """

    slots: int
    threads: int
    knowledge: int
    disk_index: int = 0
    disk_queue: int = 0
    journal_entries: int = 0

    @property
    def dirty_limit(self) -> int:
        """Slots that may be unsaved at once; the others are for readers."""
        return self.slots - max(1, self.slots // 8)


def plan_memory(
    memory: int, block_size: int, threads: int, *, copies: int = 2, disk_cache: bool = False, journal: bool = False
) -> MemoryPlan:
    """Divide the budget: blocks under way (``copies`` a thread), knowledge of the objects, slots for the rest."""
    knowledge = knowledge_budget(memory)
    index = memory // _INDEX_SHARE if disk_cache else 0
    queue = memory // _QUEUE_SHARE + 2 * slot_size(block_size) if disk_cache else 0
    entries = max(memory // _JOURNAL_SHARE // _ENTRY_BYTES, _LEAST_ENTRIES) if journal else 0
    rest = memory - knowledge - index - queue - entries * _ENTRY_BYTES
    # At most a quarter may be under way, so that large blocks reduce the parallelism and not the cache; of a small
    # memory what the fewest slots leave.
    under_way = min(memory // 4, rest - _MIN_SLOTS * _fast.slot_bytes(block_size))
    threads = max(1, min(threads, under_way // (copies * block_size)))
    slots = (rest - copies * threads * block_size) // _fast.slot_bytes(block_size)
    if slots < _MIN_SLOTS:
        raise UsageError(
            f"a memory budget of {told_size(memory)} is too small for blocks of {told_size(block_size)}",
            hint="Use --memory "
            f"{exact_size(least_memory(block_size, copies, disk_cache=disk_cache, journal=journal))} or more.",
        )
    if slots > _MOST_SLOTS:
        raise UsageError(
            f"a memory budget of {memory} bytes is too large for blocks of {block_size} bytes",
            hint="Use --memory for what may be used of this machine's memory.",
        )
    return MemoryPlan(slots, threads, knowledge, index, queue, entries)


def knowledge_budget(memory: int) -> int:
    """Return the bytes of a budget that are for what is known about the objects."""
    return memory // _KNOWLEDGE_SHARE


def least_memory(block_size: int, copies: int, *, disk_cache: bool = False, journal: bool = False) -> int:
    """Return the smallest budget for blocks of that size, rounded up to whole MiB, or KiB where it is below one."""
    blocks = copies * block_size + _MIN_SLOTS * _fast.slot_bytes(block_size)
    # Of so many parts of the budget this many are left for them.
    parts = left = _QUEUE_SHARE
    left -= parts // _KNOWLEDGE_SHARE
    if disk_cache:
        blocks += 2 * slot_size(block_size)
        left -= parts // _INDEX_SHARE + 1
    if journal:
        blocks += _LEAST_ENTRIES * _ENTRY_BYTES
        left -= parts // _JOURNAL_SHARE
    least = -(-blocks * parts // left)
    unit = MIB if least >= MIB else 1024
    return -(-least // unit) * unit


def smallest_budget(block_size: int) -> int:
    """Return a memory budget in bytes that is enough for blocks of that size, however they are encoded."""
    return 2 * (_MIN_SLOTS + _MOST_COPIES) * _fast.slot_bytes(block_size)
