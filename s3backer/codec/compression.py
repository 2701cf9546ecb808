"""Compression of one block: deflate (zlib's format, RFC 1950) and zstd (one frame, RFC 8878).

Both run with the GIL released. Decompressing never makes more than the expected size, whatever the body says.
"""

from __future__ import annotations

import functools
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from s3backer.errors import UsageError
from s3backer.stores.base import Buffer

if TYPE_CHECKING:
    import zstandard

#: Frames that do not say how much they hold get a window of at most this many bytes, which RFC 8878 asks for.
_ZSTD_WINDOW = 8 << 20
#: Magic number of a frame to be skipped, but for its last four bits; type of a block that is one byte repeated.
_ZSTD_SKIPPED, _ZSTD_RUN = 0x184D2A50, 1


class WrongLength(ValueError):
    """The compressed form of something longer or shorter."""


@dataclass(frozen=True, slots=True)
class Compression:
    """An algorithm by the name it has in Content-Encoding, and a level; None is the library's default."""

    name: str
    level: int | None = None

    def __post_init__(self) -> None:
        if self.name not in _ALGORITHMS:
            raise UsageError(
                f"there is no compression {self.name!r}", hint=f"Known are {' and '.join(sorted(_ALGORITHMS))}."
            )
        lowest, highest = _ALGORITHMS[self.name].levels
        if self.level is not None and not lowest <= self.level <= highest:
            raise UsageError(f"{self.name} has no level {self.level}", hint=f"Its levels are {lowest} to {highest}.")

    def compress(self, body: Buffer) -> bytes:
        """Return the compressed form, also where it is larger."""
        return _ALGORITHMS[self.name].compress(body, self.level)


def decompress(name: str, body: Buffer, size: int) -> bytes:
    """Return exactly ``size`` bytes; ValueError, with the reason, where the body is not the compressed form of so many.

    It is WrongLength where it is that of more or fewer.

    ``name`` is one of ``ALGORITHMS``.
    """
    result = _ALGORITHMS[name].decompress(body, size)
    if len(result) != size:
        raise WrongLength(f"it is {'longer than' if len(result) > size else 'only'} {min(len(result), size)} bytes")
    return result


def _deflate(body: Buffer, level: int | None) -> bytes:
    return zlib.compress(body, -1 if level is None else level)


def _inflate(body: Buffer, size: int) -> bytes:
    stream = zlib.decompressobj()
    try:
        # One byte more than expected shows a longer one; with no limit a few KiB could become gigabytes.
        result = stream.decompress(body, size + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if len(result) <= size and not stream.eof:
        raise ValueError("it is cut short")
    if len(result) <= size and stream.unused_data:
        raise ValueError("more follows after its end")
    return result


class _Contexts(threading.local):
    """zstd's contexts, one of a kind for each thread: they are costly to make and serve one thread at a time."""

    def __init__(self) -> None:
        # Imported here, so that the commands' start-up stays quick.
        import zstandard

        self.error = zstandard.ZstdError
        self.make_compressor = zstandard.ZstdCompressor
        self.compressors: dict[int, zstandard.ZstdCompressor] = {}
        self.decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
        self.content_size = zstandard.frame_content_size
        self.head_size = zstandard.frame_header_size
        self.parameters = zstandard.get_frame_parameters


@functools.cache
def _contexts() -> _Contexts:
    return _Contexts()


def _zstd_compress(body: Buffer, level: int | None) -> bytes:
    level = 3 if level is None else level
    contexts = _contexts()
    found = contexts.compressors.get(level)
    if found is None:
        found = contexts.compressors[level] = contexts.make_compressor(level=level)
    return found.compress(body)


def _zstd_decompress(body: Buffer, size: int) -> bytes:
    contexts = _contexts()
    parts = []
    left = size
    try:
        for frame in _zstd_frames(memoryview(body)):
            # Memory is taken for what the frame says it holds, which may be anything.
            if contexts.content_size(frame) > left:
                raise WrongLength(f"it is longer than {size} bytes")
            part = contexts.decompressor.decompress(frame, max_output_size=left + 1)
            parts.append(part)
            left = max(left - len(part), 0)
    except contexts.error as error:
        raise ValueError(str(error)) from None
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _zstd_frames(body: memoryview) -> Iterator[memoryview]:
    """Yield the frames of which the body consists, without those that are to be skipped.

    The last one may be cut short, which the library finds; what it does not find is the beginning of another.
    """
    contexts = _contexts()
    while body:
        skipped = _number(body, 0, 4) & 0xFFFFFFF0 == _ZSTD_SKIPPED
        if skipped:
            end = 8 + _number(body, 4, 4)
            if end > len(body):
                raise ValueError("it is cut short")
        else:
            checksum = contexts.parameters(body).has_checksum
            end = contexts.head_size(body)
            last = False
            while not last and end < len(body):
                block = _number(body, end, 3)
                last, run = bool(block & 1), block >> 1 & 3 == _ZSTD_RUN
                end += 3 + (1 if run else block >> 3)
            end += 4 * checksum
            yield body[:end]
        body = body[end:]


def _number(body: memoryview, start: int, length: int) -> int:
    return int.from_bytes(body[start : start + length], "little")


@dataclass(frozen=True, slots=True)
class _Algorithm:
    levels: tuple[int, int]
    compress: Callable[[Buffer, int | None], bytes]
    decompress: Callable[[Buffer, int], bytes]


_ALGORITHMS = {
    "deflate": _Algorithm((-1, 9), _deflate, _inflate),
    # The lowest levels of the library, -131072 and so on, all mean "as fast as can be".
    "zstd": _Algorithm((-(1 << 17), 22), _zstd_compress, _zstd_decompress),
}
#: Names of the algorithms, as they stand in Content-Encoding.
ALGORITHMS = frozenset(_ALGORITHMS)
