"""Which job a worker of the driver does next.

    what somebody waits for   fetches
    write-back                stores, fetches that complete a block to be stored, syncs of the journal
    ahead                     fetches that nobody waits for yet, by block; those asked for first come first

Who asks says which of the first two comes first. What is read ahead comes after both, and never has all workers; once
somebody waits for it, it is a fetch like others. Thread-safe.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from s3backer.cache_calls import Fetch, Hurry, Store, Sync


class JobQueue:
    """``most_ahead``: jobs of reading ahead that are done at once, at most."""

    def __init__(self, most_ahead: int) -> None:
        self._most_ahead = most_ahead
        self._changed = threading.Condition(threading.Lock())
        self._fetches: deque[Fetch] = deque()
        self._stores: deque[Fetch | Store | Sync] = deque()
        self._ahead: dict[int, Fetch] = {}
        #: Jobs of reading ahead that workers have now.
        self._going_ahead = 0
        #: Whether no more will come.
        self.stopped = False

    def put(self, actions: Sequence[Fetch | Store | Sync | Hurry]) -> None:
        """Hand jobs to the workers, in order; after ``stop`` they are dropped."""
        if not actions:
            return
        with self._changed:
            if self.stopped:
                return
            for action in actions:
                match action:
                    case Fetch(block, ahead=True):
                        self._ahead[block] = action
                    case Hurry(block):
                        # A worker may have it already.
                        waiting = self._ahead.pop(block, None)
                        if waiting is not None:
                            self._fetches.append(replace(waiting, urgent=True, ahead=False))
                    case Fetch(urgent=True):
                        self._fetches.append(action)
                    case _:
                        # A fetch that only completes a block to be stored is part of write-back.
                        self._stores.append(action)
            self._changed.notify(len(actions))

    def take(self, *, stores_first: bool) -> Fetch | Store | Sync | None:
        """Wait for the next job; None: it was stopped. ``done`` has to follow."""
        queues = (self._stores, self._fetches) if stores_first else (self._fetches, self._stores)
        with self._changed:
            while True:
                may_go_ahead = bool(self._ahead) and self._going_ahead < self._most_ahead
                for queue in queues:
                    if queue:
                        if may_go_ahead:
                            # Whoever was woken for that may have taken what came meanwhile, as this one does.
                            self._changed.notify()
                        return queue.popleft()
                if self.stopped:
                    # What is to be read ahead has nobody any more who would read it.
                    return None
                if may_go_ahead:
                    self._going_ahead += 1
                    return self._ahead.pop(next(iter(self._ahead)))
                self._changed.wait()

    def done(self, job: Fetch | Store | Sync) -> None:
        """Hear that a job has ended."""
        if isinstance(job, Fetch) and job.ahead:
            # This worker looks for the next job itself; who sleeps would be woken for nothing.
            with self._changed:
                self._going_ahead -= 1

    def stop(self) -> None:
        """Drop what waits, and let the workers end."""
        with self._changed:
            self.stopped = True
            # Whatever ends now would lead to more.
            for queue in (self._fetches, self._stores, self._ahead):
                queue.clear()
            self._changed.notify_all()
