"""Which blocks will be read next: sequential readers are recognised, several at once, and the others left alone.

    stream    where a reader is expected to go on; a read that begins there, or up to two blocks further, continues it
    window    blocks that are fetched before they are asked for: none before the third read of a stream, then four, and
              twice as many with each further step, up to ``most``

A state machine without threads or clocks. Reads of one stream may come a little out of order, as the kernel sends them.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

_STREAMS = 16
_FIRST_WINDOW = 4
_READS_BEFORE = 2
_GAP_BLOCKS = 2
_BEHIND_BLOCKS = 8


@dataclass(slots=True)
class _Stream:
    """``expected``: offset of the next read. ``reached``: first block that has not been asked for."""

    expected: int
    reached: int
    reads: int = 1
    window: int = 0


class ReadAhead:
    """The readers of one volume. ``most``: blocks that may be on their way for one of them; 0 turns it off."""

    def __init__(self, block_size: int, most: int) -> None:
        self._block_size = block_size
        self._most = most
        self._streams: deque[_Stream] = deque(maxlen=_STREAMS)

    def read(self, offset: int, length: int) -> range:
        """Take notice of a read, in bytes, and return the blocks to fetch beside it; they may lie beyond the end."""
        if self._most < 1 or length < 1:
            return range(0)
        stream = self._find(offset)
        end = offset + length
        if stream is None:
            self._streams.append(_Stream(end, -(-end // self._block_size)))
            return range(0)
        if end <= stream.expected:
            return range(0)
        stream.expected = end
        stream.reads += 1
        if stream.reads <= _READS_BEFORE:
            return range(0)
        # Small reads within a block are no reason to go faster.
        here = -(-end // self._block_size)
        if here + stream.window // 2 < stream.reached:
            return range(0)
        stream.window = min(self._most, max(_FIRST_WINDOW, 2 * stream.window))
        start, stream.reached = max(here, stream.reached), here + stream.window
        return range(start, stream.reached)

    def _find(self, offset: int) -> _Stream | None:
        """Return the stream that a read at this offset belongs to, and remember that it was used last."""
        gap, behind = _GAP_BLOCKS * self._block_size, _BEHIND_BLOCKS * self._block_size
        for stream in self._streams:
            if stream.expected - behind <= offset <= stream.expected + gap:
                self._streams.remove(stream)
                self._streams.append(stream)
                return stream
        return None
