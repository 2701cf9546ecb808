"""The text of the stats file: one ``NAME value`` a line, the name padded to 28 characters.

The names are the original's where the meaning is the same, so that its users' scripts go on; ours come after.
"""

from __future__ import annotations

from s3backer._fast import Slab
from s3backer.cache import CacheCounts
from s3backer.s3.prices import cost
from s3backer.telemetry.requests import RequestCounters


def render_stats(counters: RequestCounters, slab: Slab, counts: CacheCounts) -> str:
    """Return the current numbers, in the original's order."""
    requests = counters.snapshot()
    lines: list[tuple[str, str]] = []

    def add(name: str, value: int | str) -> None:
        lines.append((name, str(value)))

    add("http_normal_blocks_written", counts.stores - counts.zero_stores)
    add("http_zero_blocks_written", counts.zero_stores)
    for kind in ("get", "put", "delete"):
        add(f"http_{kind}s", requests[kind].requests)
    for kind in ("get", "put", "delete"):
        count = requests[kind]
        average = count.seconds / count.requests if count.requests else 0.0
        add(f"http_avg_{kind}_time", f"{average:.3f} sec")
    add("http_num_retries", counters.retries)
    add("block_cache_current_size", f"{slab.used} blocks")
    add("block_cache_dirty_ratio", f"{slab.unsaved / slab.slots:.8f}")
    for way, hits, misses in (
        ("read", slab.read_hits, slab.read_misses),
        ("write", slab.write_hits, slab.write_misses),
    ):
        add(f"block_cache_{way}_hits", hits)
        add(f"block_cache_{way}_misses", misses)
        add(f"block_cache_{way}_hit_ratio", f"{hits / (hits + misses) if hits + misses else 0.0:.4f}")
    add("http_heads", requests["head"].requests)
    add("http_lists", requests["list"].requests)
    add("http_bytes_sent", sum(count.bytes_sent for count in requests.values()))
    add("http_bytes_received", sum(count.bytes_received for count in requests.values()))
    add("request_cost_dollars", f"{cost(counters):.6f}")
    add("unsaved_blocks", slab.unsaved)
    add("zero_blocks_skipped", counts.zeros_skipped)
    add("fetch_errors", counts.fetch_errors)
    add("store_errors", counts.store_errors)
    return "".join(f"{name:<28}{value}\n" for name, value in lines)
