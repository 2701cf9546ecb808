"""Which job comes next."""

from __future__ import annotations

import threading

from s3backer.cache_calls import Fetch, Hurry, Store, Sync
from s3backer.job_queue import JobQueue

URGENT, MERGED, AHEAD = Fetch(1, urgent=True), Fetch(2, urgent=False), Fetch(3, urgent=False, ahead=True)
STORE = Store(4, b"", 1)


def test_each_kind_has_its_place() -> None:
    queue = JobQueue(most_ahead=1)
    queue.put([AHEAD, STORE, MERGED, Sync(), URGENT])
    assert queue.take(stores_first=False) == URGENT
    assert [queue.take(stores_first=True) for _ in range(3)] == [STORE, MERGED, Sync()]
    assert queue.take(stores_first=True) == AHEAD
    queue.put([STORE, URGENT])
    assert [queue.take(stores_first=True) for _ in range(2)] == [STORE, URGENT]


def test_what_is_read_ahead_leaves_workers_to_others() -> None:
    queue = JobQueue(most_ahead=1)
    others = [Fetch(block, urgent=False, ahead=True) for block in (7, 8)]
    queue.put([AHEAD, *others])
    assert queue.take(stores_first=False) == AHEAD
    taken: list[object] = []
    worker = threading.Thread(target=lambda: taken.append(queue.take(stores_first=False)))
    worker.start()
    worker.join(0.1)
    assert worker.is_alive() and not taken
    queue.put([STORE])
    worker.join()
    assert taken == [STORE]
    queue.done(STORE)
    queue.done(AHEAD)
    assert queue.take(stores_first=False) == others[0]


def test_what_somebody_waits_for_now_is_a_fetch_like_others() -> None:
    queue = JobQueue(most_ahead=2)
    queue.put([AHEAD, STORE, Hurry(AHEAD.block), Hurry(99)])
    assert queue.take(stores_first=False) == Fetch(AHEAD.block, urgent=True)
    assert queue.take(stores_first=False) == STORE
    queue.stop()
    assert queue.take(stores_first=False) is None


def test_stopping_drops_what_waits_and_what_comes() -> None:
    queue = JobQueue(most_ahead=1)
    workers = [threading.Thread(target=queue.take, kwargs={"stores_first": False}) for _ in range(3)]
    for worker in workers:
        worker.start()
    queue.stop()
    for worker in workers:
        worker.join()
    queue.put([URGENT, STORE, AHEAD])
    assert queue.take(stores_first=True) is None
    assert queue.stopped
