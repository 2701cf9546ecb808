"""How many requests are under way at once: found by itself, from how long they take and what the server says.

    round      as many answers of one kind as requests are allowed; its figure is the median of their seconds
    standing   the smallest figure of that kind: what a request takes when nothing queues. When it has not been seen
               for a while it is measured anew, with a quarter of what was allowed
    queue      allowed × (1 − standing / figure): how many of our own requests stand in line (TCP Vegas)
    late       a request that took ``_LATE`` times the newest figure of its kind already, when another one is answered:
               it waits for something that the others do not wait for, and another one has its place. As many again
               as are allowed, at most
    SlowDown   more than one answer in five of a round, or of ``_FEWEST`` answers: 0.7 of what was allowed
    time-out   of more than half of a round of writes: half of the writes that were allowed, down to one. What does
               not fit through the way to the server in time is sent for nothing, and so is all that is sent beside
               it. A round of writes that took less than half of the time-out allows one more, which doubles what each
               takes at most. One during which as many others were answered as are allowed says nothing of the way

Guarantees
  * Reads go first, and writes never hold more than three quarters of what is allowed: queued writes starve no read,
    also while more of them are under way than are allowed by now. While writes wait, reads leave them a quarter.
  * Where only one is allowed, reads and writes that wait take turns.
  * Never fewer than ``least`` are allowed, never more than ``most``; of writes never fewer than one.
  * Time-outs of writes leave reads alone.
"""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable

LEAST = 8
_SLOW_SHARE = 0.2
#: Answers of which a share means something: of rounds of 8 with 12 % of them one in four had two.
_FEWEST = 32
#: Writes that are a round at least.
_FEW = 4
#: Rounds after which a kind's standing figure is measured anew.
_MEMORY = 64


#: Times the median after which a request is late. Those of one queue stay far below: each waits for the same ones.
_LATE = 8


class Turn:
    """That of one request, from its beginning to its end. ``apart``: it waits for nobody and counts for nothing."""

    __slots__ = ("answered", "apart", "began", "granted", "late", "write")

    def __init__(self, *, write: bool, apart: bool = False) -> None:
        self.write = write
        self.apart = apart
        self.began = 0.0
        #: Requests of its kind that had been answered when it began.
        self.answered = 0
        self.late = False
        self.granted: threading.Lock | None = None


class _Kind:
    """Reads or writes."""

    def __init__(self) -> None:
        self.waiting: deque[Turn] = deque()
        self.under_way = 0
        #: Those under way that are not late, oldest first, and how many are late.
        self.on_time: dict[Turn, None] = {}
        self.late = 0
        self.answered = 0
        self.figure = math.inf
        self.seconds: list[float] = []
        self.standing = math.inf
        self.rounds = 0


class Limiter:
    """Lets requests begin. ``most``: as many as ever are under way; ``least`` of them always may be.

    ``timeout``: seconds that a write may take; ``clock`` in seconds, monotonic.
    """

    def __init__(
        self,
        most: int,
        *,
        least: int = LEAST,
        timeout: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._most = float(max(1, most))
        self._least = float(min(least, self._most))
        self._allowed = self._least
        self._lock = threading.Lock()
        self._reads, self._writes = _Kind(), _Kind()
        self._slow = 0
        self._answers = 0
        self._full = False
        #: Whether the last one that began was a write.
        self._wrote = True
        self._closed = False
        self._timeout = timeout
        #: Writes that may be under way; infinite: as many as their share.
        self._write_level = math.inf
        #: Writes in time since it was changed, and those under way that began before it was lowered.
        self._in_time = 0
        self._before = 0
        #: Writes that ended in this round, and how many of them by a time-out.
        self._ends = self._time_outs = 0

    @property
    def allowed(self) -> int:
        """How many requests may be under way now."""
        return int(self._allowed)

    @property
    def under_way(self) -> int:
        """How many are."""
        return self._reads.under_way + self._writes.under_way

    def begin(self, *, write: bool) -> Turn | None:
        """Wait for a place and take it; None if the limiter was closed. ``end`` has to follow."""
        kind = self._writes if write else self._reads
        turn = Turn(write=write)
        with self._lock:
            if self._closed:
                return None
            if not kind.waiting and self._has_room(write):
                self._grant(turn)
                return turn
            self._full = True
            turn.granted = threading.Lock()
            turn.granted.acquire()
            kind.waiting.append(turn)
        turn.granted.acquire()
        return None if self._closed else turn

    def end(self, turn: Turn, *, seconds: float | None, slow_down: bool = False, timed_out: bool = False) -> None:
        """Give a place back. ``seconds``: how long the answer took, None if none came or it says nothing."""
        if turn.apart:
            return
        kind = self._writes if turn.write else self._reads
        with self._lock:
            kind.under_way -= 1
            kind.late -= turn.late
            kind.on_time.pop(turn, None)
            self._answers += 1
            self._slow += slow_down
            if turn.write:
                alone = kind.answered - turn.answered < min(self._write_level, self._share)
                self._learn_of_write(seconds, timed_out=timed_out and alone)
            if self._answers >= max(self._allowed, _FEWEST):
                if self._slow > _SLOW_SHARE * self._answers:
                    self._allowed = max(self._least, self._allowed * 0.7)
                    kind.seconds.clear()
                self._answers = self._slow = 0
            if seconds is not None:
                kind.answered += 1
                self._look_for_late(kind)
                kind.seconds.append(seconds)
                if len(kind.seconds) >= self._allowed:
                    self._learn(kind)
            for go in self._next_ones():
                go.release()

    def close(self) -> None:
        """Let everybody who waits go away."""
        with self._lock:
            self._closed = True
            for kind in (self._reads, self._writes):
                while kind.waiting:
                    granted = kind.waiting.popleft().granted
                    assert granted is not None
                    granted.release()

    def _grant(self, turn: Turn) -> None:
        kind = self._writes if turn.write else self._reads
        self._wrote = turn.write
        kind.under_way += 1
        kind.on_time[turn] = None
        turn.began, turn.answered = self._clock(), kind.answered

    def _look_for_late(self, kind: _Kind) -> None:
        limit = self._clock() - _LATE * kind.figure
        while kind.on_time and (turn := next(iter(kind.on_time))).began < limit:
            del kind.on_time[turn]
            turn.late = True
            kind.late += 1

    def _learn_of_write(self, seconds: float | None, *, timed_out: bool) -> None:
        if self._before:
            self._before -= 1
            return
        self._ends += 1
        self._time_outs += timed_out
        level = min(self._write_level, self._share)
        if self._ends >= max(level, _FEW):
            if 2 * self._time_outs > self._ends:
                self._write_level = max(1, level // 2)
                self._in_time, self._before = 0, self._writes.under_way
            self._ends = self._time_outs = 0
        if seconds is not None and self._write_level < math.inf:
            self._in_time = self._in_time + 1 if seconds < self._timeout / 2 else 0
            if self._in_time >= self._write_level:
                self._in_time = 0
                self._write_level += 1
                if self._write_level > self._most * 3 // 4:
                    self._write_level = math.inf

    def _learn(self, kind: _Kind) -> None:
        figure = kind.figure = statistics.median(kind.seconds)
        kind.seconds.clear()
        kind.rounds += 1
        if kind.rounds == 0:
            # These began before the level was lowered.
            return
        if figure <= kind.standing:
            kind.standing, kind.rounds = figure, 0
        elif kind.rounds >= _MEMORY:
            kind.standing, kind.rounds = math.inf, -1
            self._allowed = max(self._least, self._allowed / 4)
            return
        queue = self._allowed * (1.0 - kind.standing / figure) if figure > 0 else 0.0
        # What was not used up says nothing about more.
        if self._full and queue < 2.0 + 0.1 * self._allowed:
            self._allowed = min(self._most, self._allowed * 2)
        elif queue > 4.0 + 0.3 * self._allowed:
            self._allowed = max(self._least, self._allowed * 7 / 8)
        self._full = False

    @property
    def _share(self) -> int:
        """How many of one kind may be under way while the other one waits."""
        return max(1, int(self._allowed) * 3 // 4)

    def _has_room(self, write: bool) -> bool:
        allowed, reads, writes = int(self._allowed), self._load(self._reads), self._load(self._writes)
        if not write and reads < allowed - self._share and self.under_way < self._most:
            # Also when less was allowed after the writes under way had begun: reads do not wait until they end.
            return True
        if reads + writes >= allowed or self.under_way >= self._most:
            return False
        if write:
            most = max(1, self._most * 3 // 4)
            return writes < min(self._share, self._write_level) and self._writes.under_way < most
        return not self._writes.waiting or reads < self._share

    def _load(self, kind: _Kind) -> int:
        """Return how many of a kind count as under way."""
        return kind.under_way - min(kind.late, int(self._allowed))

    def _next_ones(self) -> list[threading.Lock]:
        found = []
        kinds = [(self._reads, False), (self._writes, True)]
        if self._allowed < 2 and not self._wrote:
            # There is no quarter for anybody.
            kinds.reverse()
        for kind, write in kinds:
            while kind.waiting and self._has_room(write):
                turn = kind.waiting.popleft()
                self._grant(turn)
                assert turn.granted is not None
                found.append(turn.granted)
        return found


class Pace:
    """A limit of speed for everything together, in bits per second; None: no limit. ``clock`` in seconds."""

    def __init__(self, bits_per_second: int | None, clock: Callable[[], float]) -> None:
        self._rate = bits_per_second
        self._clock = clock
        self._lock = threading.Lock()
        self._free_at = 0.0

    def take(self, size: int) -> float:
        """Enter a transfer of ``size`` bytes and return how many seconds it has to last at least."""
        if not self._rate or not size:
            return 0.0
        with self._lock:
            now = self._clock()
            self._free_at = max(now, self._free_at) + size * 8 / self._rate
            return self._free_at - now
