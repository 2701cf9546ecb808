"""The statistics: the original's names in its order, values that are right, and a start from zero."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from s3backer.admin import create_volume
from s3backer.errors import S3backerError
from s3backer.opening import VolumeOptions
from s3backer.stores.memory import MemoryStore
from s3backer.stores.options import StoreOptions
from s3backer.stores.s3 import S3Store
from s3backer.telemetry.mirror import StatsMirror
from s3backer.telemetry.requests import FAILURES, RequestCounters, failure_of_status
from s3backer.volume import Volume
from tests.support.mounts import wait_until
from tests.support.nasty import NastyServer, Step, reply

BLOCK = 4096
_NAMES = """
    http_normal_blocks_read http_normal_blocks_written http_zero_blocks_read http_zero_blocks_written
    http_empty_blocks_read http_empty_blocks_written http_gets http_puts http_deletes http_avg_get_time
    http_avg_put_time http_avg_delete_time http_unauthorized http_forbidden http_stale http_redirect http_verified
    http_mismatch http_5xx_error http_4xx_error http_3xx_error http_other_error http_canceled_writes http_num_retries
    http_total_retry_delay curl_handle_reuse_ratio curl_timeouts curl_connect_failed curl_host_unknown
    curl_out_of_memory curl_other_error
    block_cache_current_size block_cache_initial_size block_cache_dirty_ratio block_cache_read_hits
    block_cache_read_misses block_cache_read_hit_ratio block_cache_write_hits block_cache_write_misses
    block_cache_write_hit_ratio block_cache_verified block_cache_mismatch
    zero_block_cache_size zero_block_cache_read_hits zero_block_cache_write_hits lower_zero_block_cache_size
    lower_zero_block_cache_read_hits lower_zero_block_cache_write_hits
    md5_cache_current_size md5_cache_data_hits md5_cache_full_delays md5_cache_write_delays
    out_of_memory_errors
"""
NAMES = _NAMES.split()


def numbers(volume: Volume) -> dict[str, str]:
    """Return the values by name."""
    return dict(line.split(maxsplit=1) for line in volume.stats_text().splitlines())


@pytest.fixture
def store() -> MemoryStore:
    store = MemoryStore()
    create_volume(store, "", size=64 * BLOCK, block_size=BLOCK)
    return store


def test_the_originals_names_come_first_and_in_its_order(store: MemoryStore) -> None:
    with Volume.open(store, "") as volume:
        lines = volume.stats_text().splitlines()
    assert [line.split()[0] for line in lines[: len(NAMES)]] == NAMES
    assert len({line.split()[0] for line in lines}) == len(lines) > len(NAMES)
    for line in lines:
        name, value = line.split(maxsplit=1)
        assert line == f"{name:<28} {value}"


def test_blocks_are_counted_by_what_was_done_with_them(store: MemoryStore) -> None:
    with Volume.open(store, "") as volume:
        volume.write(BLOCK, b"x" * 3 * BLOCK)
        volume.flush()
        volume.discard(2 * BLOCK, BLOCK)
        volume.flush()
    with Volume.open(store, "", VolumeOptions(list_blocks=False)) as volume:
        assert numbers(volume)["zero_block_cache_size"] == "0 blocks"
        volume.read(BLOCK, BLOCK)
        volume.read(2 * BLOCK, BLOCK)
        # Not stored again, and not asked for again.
        volume.discard(2 * BLOCK, BLOCK)
        volume.write(10 * BLOCK, b"y" * BLOCK)
        volume.discard(3 * BLOCK, BLOCK)
        volume.flush()
        found = numbers(volume)
        assert [found[name] for name in NAMES[:6]] == ["1", "1", "1", "1", "0", "1"]
        assert found["zero_block_cache_size"] == "2 blocks"
        assert found["zero_block_cache_write_hits"] == "1"


def test_a_block_is_written_when_the_store_has_it(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise S3backerError("away")

    with Volume.open(store, "") as volume:
        volume.write(BLOCK, b"x" * BLOCK)
        with monkeypatch.context() as patch:
            patch.setattr(store, "put", fail)
            with pytest.raises(S3backerError):
                volume.flush()
            found = numbers(volume)
            assert (found["http_normal_blocks_written"], found["store_errors"]) == ("0", "1")
        volume.flush()
        assert numbers(volume)["http_normal_blocks_written"] == "1"


def test_a_reset_starts_from_zero_and_keeps_the_totals(store: MemoryStore) -> None:
    with Volume.open(store, "") as volume:
        volume.write(BLOCK, b"x" * BLOCK)
        volume.flush()
        puts = store.counters.snapshot()["put"].requests
        volume.reset_stats()
        found = numbers(volume)
        # Sizes and ratios of what is there are no counts.
        still = {"block_cache_current_size", "zero_block_cache_size"}
        assert found.pop("request_cost_dollars_per_month") == "unknown"
        assert {name for name, value in found.items() if float(value.split()[0])} <= still
        assert store.counters.snapshot()["put"].requests == puts > 0


def options(endpoint: str, **more: float) -> StoreOptions:
    return StoreOptions(endpoint_url=endpoint, region="us-east-1", access_key="a", secret_key="b", **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("status", "failure"),
    [
        (200, ""),
        (204, ""),
        (206, ""),
        (404, ""),
        (416, ""),
        (401, "unauthorized"),
        (403, "forbidden"),
        (412, "stale"),
        (301, "redirect"),
        (307, "redirect"),
        (300, "other 3xx"),
        (304, ""),
        (400, "other 4xx"),
        (409, "other 4xx"),
        (500, "5xx"),
        (503, "5xx"),
        (600, "other status"),
        (100, "other status"),
    ],
)
def test_statuses(status: int, failure: str) -> None:
    assert failure_of_status(status) == failure
    assert failure == "" or failure in FAILURES


def test_attempts_retries_and_connections_of_s3(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    body = reply(200, b"abc", ETag='"x"')
    with NastyServer(reply(503), reply(500), body, reply(403), body) as server:
        store = S3Store("bucket", options(server.url), sleep=pauses.append)
        store.get("key")
        with pytest.raises(S3backerError):
            store.get("key")
        store.get("key")
        counters = store.counters
        assert {name: n for name, n in counters.failures().items() if n} == {"5xx": 2, "forbidden": 1}
        assert (counters.retries, counters.retry_seconds) == (2, sum(pauses))
        assert counters.connections == 1
        store.close()


def refused() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    ("endpoint", "failure"),
    [(refused, "connect failed"), (lambda: "http://no-such-host.invalid", "host unknown")],
)
def test_no_connection(endpoint: Callable[[], str], failure: str) -> None:
    store = S3Store("bucket", options(endpoint(), patience=0))
    with pytest.raises(S3backerError):
        store.get("key")
    assert {name: n for name, n in store.counters.failures().items() if n} == {failure: store.counters.retries + 1}
    store.close()


@pytest.mark.parametrize(
    ("step", "failure"), [(Step(hold=True), "timeout"), (Step(end="reset"), "other connection error")]
)
def test_no_answer(step: Step, failure: str) -> None:
    with NastyServer(step) as server:
        store = S3Store("bucket", options(server.url, patience=0, timeout=0.3))
        with pytest.raises(S3backerError):
            store.get("key")
        assert {name: n for name, n in store.counters.failures().items() if n} == {failure: 1}
        store.close()


def test_counting_from_many_threads() -> None:
    counters = RequestCounters()

    def work() -> None:
        for _ in range(1000):
            counters.add_failure("5xx")
            counters.add_connection()
            counters.add_retry(0.5)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (counters.failures()["5xx"], counters.connections, counters.retry_seconds) == (4000, 4000, 2000)


def test_removing_the_mirror_resets_too(tmp_path: Path) -> None:
    path = tmp_path / "mirror"
    resets: list[bool] = []
    with StatsMirror(str(path), 0.01, lambda: f"{len(resets)}", lambda: resets.append(True)):
        wait_until(path.exists, "the mirror is written")
        assert not resets

        def removed() -> bool:
            # It may be put back by what was under way.
            path.unlink(missing_ok=True)
            return bool(resets)

        wait_until(removed, "its removal is seen")
        wait_until(lambda: path.exists() and path.read_text() == f"{len(resets)}", "it is written again")
