"""The text of the stats file: one ``NAME value`` a line, the name padded to 28 characters, and a space.

The original's names come first, all of them and in its order, so that its users' scripts go on; ours come after.
What has no counterpart here is 0: there is no second cache for old answers (``md5_cache``), no ``blockCacheFile``
whose blocks would have to be verified, and no upload is broken off. ``http_empty_blocks`` and ``zero_block_cache``
count the same thing, which is called one way before the original's 1.6 and the other way since.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from s3backer._fast import Slab
from s3backer.cache_calls import CacheCounts
from s3backer.disk_cache import CopyCounts
from s3backer.telemetry.bill import bill
from s3backer.telemetry.prices import CURRENT, Prices
from s3backer.telemetry.requests import RequestCounters

_Totals = dict[str, float]


class Statistics:
    """The numbers of one volume since it was opened, or since ``reset``. ``absent``: blocks known to have no object."""

    def __init__(
        self,
        counters: RequestCounters,
        slab: Slab,
        counts: CacheCounts,
        absent: Callable[[], int] = lambda: 0,
        prices: Prices = CURRENT,
        copies: CopyCounts | None = None,
    ) -> None:
        self._counters = counters
        self._slab = slab
        self._counts = counts
        self._absent = absent
        self._prices = prices
        self._copies = copies or CopyCounts()
        self._began = time.monotonic()
        self._before: _Totals = {}

    def reset(self) -> None:
        """Count from zero again. Totals elsewhere, as in ``info``, stay."""
        self._before = self._totals()

    def text(self) -> str:
        """Return the current numbers."""
        before = self._before
        now = {name: value - before.get(name, 0) for name, value in self._totals().items()}
        slab = self._slab

        def number(name: str) -> str:
            return str(int(now[name]))

        def ratio(part: str, *whole: str) -> str:
            total = sum(now[name] for name in whole)
            return f"{now[part] / total if total else 0.0:.4f}"

        def average(kind: str) -> str:
            return f"{now[f'{kind} seconds'] / now[kind] if now[kind] else 0.0:.3f} sec"

        requests = sum(now[kind] for kind in ("get", "head", "put", "delete", "list"))
        new = min(now["connections"], requests)
        lines = (
            ("http_normal_blocks_read", number("blocks read")),
            ("http_normal_blocks_written", number("blocks written")),
            ("http_zero_blocks_read", number("zero blocks read")),
            ("http_zero_blocks_written", number("zero blocks written")),
            ("http_empty_blocks_read", number("zeros read")),
            ("http_empty_blocks_written", number("zeros skipped")),
            ("http_gets", number("get")),
            ("http_puts", number("put")),
            ("http_deletes", number("delete")),
            ("http_avg_get_time", average("get")),
            ("http_avg_put_time", average("put")),
            ("http_avg_delete_time", average("delete")),
            ("http_unauthorized", number("unauthorized")),
            ("http_forbidden", number("forbidden")),
            ("http_stale", number("stale")),
            ("http_redirect", number("redirect")),
            ("http_verified", "0"),
            ("http_mismatch", "0"),
            ("http_5xx_error", number("5xx")),
            ("http_4xx_error", number("other 4xx")),
            ("http_3xx_error", number("other 3xx")),
            ("http_other_error", number("other status")),
            ("http_canceled_writes", "0"),
            ("http_num_retries", number("retries")),
            ("http_total_retry_delay", f"{now['retry seconds']:.3f} sec"),
            ("curl_handle_reuse_ratio", f"{(requests - new) / requests if requests and new else 0.0:.4f}"),
            ("curl_timeouts", number("timeout")),
            ("curl_connect_failed", number("connect failed")),
            ("curl_host_unknown", number("host unknown")),
            ("curl_out_of_memory", "0"),
            ("curl_other_error", number("other connection error")),
            ("block_cache_current_size", f"{slab.used} blocks"),
            ("block_cache_initial_size", "0 blocks"),
            ("block_cache_dirty_ratio", f"{slab.unsaved / slab.slots:.8f}"),
            ("block_cache_read_hits", number("read hits")),
            ("block_cache_read_misses", number("read misses")),
            ("block_cache_read_hit_ratio", ratio("read hits", "read hits", "read misses")),
            ("block_cache_write_hits", number("write hits")),
            ("block_cache_write_misses", number("write misses")),
            ("block_cache_write_hit_ratio", ratio("write hits", "write hits", "write misses")),
            ("block_cache_verified", "0"),
            ("block_cache_mismatch", "0"),
            ("zero_block_cache_size", f"{self._absent()} blocks"),
            ("zero_block_cache_read_hits", number("zeros read")),
            ("zero_block_cache_write_hits", number("zeros skipped")),
            ("lower_zero_block_cache_size", "0 blocks"),
            ("lower_zero_block_cache_read_hits", "0"),
            ("lower_zero_block_cache_write_hits", "0"),
            ("md5_cache_current_size", "0 blocks"),
            ("md5_cache_data_hits", "0"),
            ("md5_cache_full_delays", "0.000 sec"),
            ("md5_cache_write_delays", "0.000 sec"),
            ("out_of_memory_errors", number("out of memory")),
            # ── ours ──
            ("http_heads", number("head")),
            ("http_lists", number("list")),
            ("http_bytes_sent", number("bytes sent")),
            ("http_bytes_received", number("bytes received")),
            ("http_hedges", number("hedges")),
            ("http_hedges_won", number("hedges won")),
            ("request_cost_dollars", f"{now['cost']:.6f}"),
            ("request_cost_dollars_per_month", self._per_month()),
            ("unsaved_blocks", str(slab.unsaved)),
            ("zero_blocks_skipped", number("zeros skipped")),
            ("fetch_errors", number("fetch errors")),
            ("store_errors", number("store errors")),
            ("block_cache_evictions", number("evictions")),
            ("block_cache_returns", number("returns")),
            ("disk_cache_hits", number("copies read")),
            ("disk_cache_verified", number("copies verified")),
            ("disk_cache_misses", number("copies missing")),
            ("disk_cache_damaged", number("copies damaged")),
            ("disk_cache_skipped", number("copies skipped")),
            ("disk_cache_bytes_read", number("copy bytes read")),
            ("disk_cache_bytes_written", number("copy bytes written")),
        )
        return "".join(f"{name:<28} {value}\n" for name, value in lines)

    def _per_month(self) -> str:
        """Return what a month costs at the rate since the start, unknown where it is too early to say."""
        per_month = bill(self._counters, self._prices, time.monotonic() - self._began).per_month
        return "unknown" if per_month is None else f"{per_month:.6f}"

    def _totals(self) -> _Totals:
        """Return everything that only ever grows."""
        counters, counts, slab, copies = self._counters, self._counts, self._slab, self._copies
        requests = counters.snapshot()
        return {
            **{kind: count.requests for kind, count in requests.items()},
            **{f"{kind} seconds": count.seconds for kind, count in requests.items()},
            "bytes sent": sum(count.bytes_sent for count in requests.values()),
            "bytes received": sum(count.bytes_received for count in requests.values()),
            "cost": sum(self._prices.of_requests(requests).values()),
            "hedges": counters.hedges,
            "hedges won": counters.hedges_won,
            **counters.failures(),
            "retries": counters.retries,
            "retry seconds": counters.retry_seconds,
            "connections": counters.connections,
            "blocks read": counts.blocks_read,
            "zero blocks read": counts.zero_blocks_read,
            "blocks written": counts.blocks_written,
            "zero blocks written": counts.zero_blocks_written,
            "zeros read": counts.zeros_read,
            "zeros skipped": counts.zeros_skipped,
            "fetch errors": counts.fetch_errors,
            "store errors": counts.store_errors,
            "out of memory": counts.memory_errors,
            "read hits": slab.read_hits,
            "read misses": slab.read_misses,
            "write hits": slab.write_hits,
            "write misses": slab.write_misses,
            "evictions": slab.evictions,
            "returns": slab.ghost_hits,
            "copies read": copies.hits,
            "copies verified": copies.verified,
            "copies missing": copies.misses,
            "copies damaged": copies.damaged,
            "copies skipped": copies.skipped,
            "copy bytes read": copies.bytes_read,
            "copy bytes written": copies.bytes_written,
        }
