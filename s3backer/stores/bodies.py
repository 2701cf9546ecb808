"""Bodies in pieces: what is put may be one buffer or several in a row, and is never joined or copied for it.

A header and the extents that follow it lie in different places of the memory; sums go over one piece after the other,
and one system call sends many of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import islice

from s3backer.stores.base import Body

#: A body as views of its bytes, none of them empty.
Pieces = tuple[memoryview, ...]
#: Buffers that one system call takes: IOV_MAX of Linux.
_MOST_BUFFERS = 1024


def pieces(body: Body) -> Pieces:
    """Return a body as views of its bytes; BufferError or TypeError for what is no contiguous buffer."""
    buffers = (body,) if isinstance(body, (bytes, bytearray, memoryview)) else body
    views = (memoryview(buffer) for buffer in buffers)
    return tuple(view.cast("B") for view in views if view.nbytes)


def size_of(body: Body) -> int:
    """Return how many bytes a body has."""
    if isinstance(body, (bytes, bytearray, memoryview)):
        return memoryview(body).nbytes
    return sum(memoryview(piece).nbytes for piece in body)


def same(data: bytes, found: Sequence[memoryview]) -> bool:
    """Return whether a body in pieces is ``data``."""
    view, start = memoryview(data), 0
    for piece in found:
        if view[start : start + len(piece)] != piece:
            return False
        start += len(piece)
    return start == len(data)


def cut(found: Sequence[memoryview], size: int) -> list[Pieces]:
    """Cut a body into bodies of ``size`` bytes; the last one has what is left."""
    cuts: list[Pieces] = []
    one: list[memoryview] = []
    room = size
    for piece in found:
        view = piece
        while len(view):
            one.append(view[:room])
            room -= len(one[-1])
            view = view[len(one[-1]) :]
            if not room:
                cuts.append(tuple(one))
                one, room = [], size
    return [*cuts, tuple(one)] if one else cuts


class Unsent:
    """What is left of a body while it is sent or written by system calls that take a part of it each."""

    def __init__(self, found: Sequence[memoryview]) -> None:
        self._left = deque(found)

    def __bool__(self) -> bool:
        return bool(self._left)

    def first(self, most: int) -> memoryview:
        """Return at most so many bytes of the next piece."""
        return self._left[0][:most]

    def next_ones(self) -> list[memoryview]:
        """Return as many of the next pieces as one system call takes."""
        return list(islice(self._left, _MOST_BUFFERS))

    def take(self, count: int) -> None:
        """Leave out the next ``count`` bytes: they have been taken."""
        while self._left and count >= len(self._left[0]):
            count -= len(self._left.popleft())
        if count:
            self._left[0] = self._left[0][count:]
