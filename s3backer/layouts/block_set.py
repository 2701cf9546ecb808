"""A set of block numbers that stays small: one bit for each block near one that is in it."""

from __future__ import annotations

from collections.abc import Iterator

#: Blocks that share a piece of the bitmap: 512 bytes, so that a lone block costs little and a dense range no more.
_PIECE = 4096


class BlockSet:
    """Numbers of blocks, iterated in order. Not thread-safe."""

    def __init__(self) -> None:
        self._pieces: dict[int, bytearray] = {}
        self._count = 0

    def add(self, block: int) -> None:
        """Put a block in; one that is in already stays."""
        piece = self._pieces.setdefault(block // _PIECE, bytearray(_PIECE // 8))
        at, bit = block % _PIECE // 8, 1 << block % 8
        if not piece[at] & bit:
            piece[at] |= bit
            self._count += 1

    def __contains__(self, block: int) -> bool:
        piece = self._pieces.get(block // _PIECE)
        return piece is not None and bool(piece[block % _PIECE // 8] & 1 << block % 8)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        for number in sorted(self._pieces):
            for at, bits in enumerate(self._pieces[number]):
                for bit in range(8) if bits else ():
                    if bits >> bit & 1:
                        yield number * _PIECE + at * 8 + bit
