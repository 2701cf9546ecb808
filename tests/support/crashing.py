"""Writers that are killed, and what has to be there afterwards.

A writer is forked from one process that has loaded everything, so that a life takes no start-up. It stamps sectors of a
volume, and parts of them, and says on a pipe what it begins, what was acknowledged and which flush succeeded; a pipe
keeps what a killed process had written to it.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from s3backer import failpoints
from s3backer.opening import VolumeOptions
from s3backer.stores.directory import DirectoryStore
from s3backer.volume import Volume

#: Bytes that are stamped together: parts of a sector, of which there are so many in one.
PIECE, SECTOR_PIECES = 128, 4
BLOCK = 4096
BLOCKS = 64
SIZE = BLOCK * BLOCKS
OPTIONS = VolumeOptions(
    memory=8 << 20, threads=4, write_delay=0.01, list_blocks=False, journal=1 << 20, journal_directory=""
)
#: begins or has ended: kind, generation, first piece, number of pieces
_LINE = struct.Struct("<cIII")


def stamp(piece: int, generation: int) -> bytes:
    """Return what a piece holds: zeros for generation 0, otherwise nothing that another one holds."""
    return struct.pack("<II", piece, generation) * (PIECE // 8) if generation else bytes(PIECE)


def stamps(first: int, count: int, generation: int) -> bytes:
    """Return what so many pieces hold."""
    return b"".join(stamp(piece, generation) for piece in range(first, first + count))


def generation_of(piece: int, content: bytes) -> int | None:
    """Return the generation of a piece's content, None if it is torn or not this piece's."""
    if not any(content):
        return 0
    found: int = struct.unpack_from("<II", content)[1]
    return found if content == stamp(piece, found) else None


def choose(source: random.Random, pieces: int) -> tuple[int, int]:
    """Return the first one and the number of some of so many pieces: most often whole sectors."""
    first = source.randrange(pieces // SECTOR_PIECES) * SECTOR_PIECES
    count = source.choice([1, 1, 2, 3, 8, 8, 16, 40]) * SECTOR_PIECES
    if source.random() < 0.3:
        first += source.randrange(SECTOR_PIECES)
        count -= source.randrange(SECTOR_PIECES)
    return first, min(count, pieces - first)


@dataclass
class History:
    """What a volume's pieces may hold. A piece: what is acknowledged last, and what was begun after that.

    Zeros count as generation 0; what they replaced is not to be seen again once they are acknowledged.
    """

    acknowledged: dict[int, int] = field(default_factory=dict)
    begun: dict[int, set[int]] = field(default_factory=dict)
    #: Sectors of which a part was written since they were written as a whole: those may be of several writes.
    parted: set[int] = field(default_factory=set)
    flushes: int = 0
    writes: int = 0

    def take(self, said: bytes) -> None:
        """Learn from what a writer has said."""
        for at in range(0, len(said) - _LINE.size + 1, _LINE.size):
            kind, generation, first, count = _LINE.unpack_from(said, at)
            value = 0 if kind in b"zZ" else generation
            if kind in b"wz":
                self.begin(first, count, value)
            elif kind in b"WZ":
                self.acknowledge(first, count, value)
            elif kind == b"F":
                self.flushes += 1

    def begin(self, first: int, count: int, value: int) -> None:
        """Note that a write of these pieces begins."""
        for piece in range(first, first + count):
            self.begun.setdefault(piece, set()).add(value)
        self.parted.update(end // SECTOR_PIECES for end in (first, first + count) if end % SECTOR_PIECES)

    def acknowledge(self, first: int, count: int, value: int) -> None:
        """Note that it was acknowledged."""
        self.writes += 1
        for piece in range(first, first + count):
            self.acknowledged[piece] = value
            # There is one writer at a time: whatever was begun before lies under this one.
            self.begun.pop(piece, None)
        self.parted.difference_update(range(-(-first // SECTOR_PIECES), (first + count) // SECTOR_PIECES))

    def check(self, content: bytes, first: int = 0) -> None:
        """Fail unless everything acknowledged is there, whole, or what was begun later.

        ``content`` is that of the pieces from ``first`` on.
        """
        pieces = range(first, first + len(content) // PIECE)
        for piece in pieces:
            start = (piece - first) * PIECE
            found = generation_of(piece, content[start : start + PIECE])
            last = self.acknowledged.get(piece, 0)
            allowed = {last, *self.begun.get(piece, ())}
            assert found in allowed, f"piece {piece} holds {found}, not one of {sorted(allowed)}"
            # It stays what it is now.
            assert found is not None
            self.acknowledged[piece] = found
            self.begun.pop(piece, None)
        for sector in range(-(-pieces.start // SECTOR_PIECES), pieces.stop // SECTOR_PIECES):
            base = sector * SECTOR_PIECES
            values = {self.acknowledged[piece] for piece in range(base, base + SECTOR_PIECES)}
            assert len(values) == 1 or sector in self.parted, f"sector {sector} is torn: {sorted(values)}"


class Writer:
    """Stamps pieces of a volume until it is killed, or has done ``steps`` things."""

    def __init__(self, bucket: Path, journals: Path, seed: int, pipe: int, first: int, *, journal: bool = True) -> None:
        self._source = random.Random(seed)
        self._journal = journal
        self._pipe = pipe
        self._generation = first
        self._bucket, self._journals = bucket, journals

    def run(self, steps: int) -> None:
        """Open the volume, write, and close it."""
        source = self._source
        with open_volume(self._bucket, self._journals, journal=self._journal) as volume:
            os.write(self._pipe, _LINE.pack(b"o", 0, 0, 0))
            for _ in range(steps):
                self._generation += 1
                first, count = choose(source, SIZE // PIECE)
                dice = source.random()
                if dice < 0.75:
                    self._say(b"w", first, count)
                    volume.write(first * PIECE, stamps(first, count, self._generation))
                    self._say(b"W", first, count)
                elif dice < 0.85:
                    self._say(b"z", first, count)
                    volume.discard(first * PIECE, count * PIECE)
                    self._say(b"Z", first, count)
                else:
                    volume.flush()
                    self._say(b"F", 0, 0)

    def _say(self, kind: bytes, first: int, count: int) -> None:
        os.write(self._pipe, _LINE.pack(kind, self._generation, first, count))


def open_volume(bucket: Path, journals: Path, *, journal: bool = True) -> Volume:
    """Open the volume with what is in its journal; without ``journal`` that is replayed, and there is none then."""
    options = replace(OPTIONS, journal_directory=str(journals))
    return Volume.open(DirectoryStore(bucket), "", options if journal else replace(options, journal=0))


@dataclass(frozen=True)
class Life:
    """How a writer ended. ``point``: a failpoint and at which time; ``seconds``: when it is killed without one.

    ``left``: what it leaves is recovered by the next one. Without ``journal`` it may write nothing.
    """

    seed: int
    point: str = ""
    count: int = 1
    seconds: float | None = None
    steps: int = 400
    left: bool = False
    journal: bool = True


class Zygote:
    """Forks writers. It is made before anything else runs threads, and lives as long as the ``with`` block."""

    def __init__(self) -> None:
        self._orders_in, self._orders = os.pipe()
        self._answers, self._answers_out = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            with contextlib.suppress(BaseException):
                os.close(self._orders)
                os.close(self._answers)
                self._serve()
            os._exit(0)
        os.close(self._orders_in)
        os.close(self._answers_out)

    def _serve(self) -> None:
        with os.fdopen(self._orders_in) as orders:
            for line in orders:
                *where, seed, point, count, steps, journal, first, path = line.rstrip("\n").split("\t")
                pipe = os.open(path, os.O_WRONLY)
                pid = os.fork()
                if not pid:
                    writer = Writer(
                        Path(where[0]), Path(where[1]), int(seed), pipe, int(first), journal=journal == "True"
                    )
                    self._live(writer, point, int(count), int(steps))
                os.close(pipe)
                os.write(self._answers_out, struct.pack("<ii", 0, pid))
                _, status = os.waitpid(pid, 0)
                os.write(self._answers_out, struct.pack("<ii", 1, status))

    @staticmethod
    def _live(writer: Writer, point: str, count: int, steps: int) -> None:
        code = 1
        try:
            failpoints.arm(point, count)
            writer.run(steps)
            code = 0
        except BaseException as error:
            print(f"the writer met {error!r}", file=sys.stderr, flush=True)
        finally:
            os._exit(code)

    def live(self, bucket: Path, journals: Path, life: Life, first: int) -> tuple[int, bytes]:
        """Let a writer live; return its status as of waitpid, and what it said."""
        fifo = bucket.with_name("said")
        with contextlib.suppress(FileExistsError):
            os.mkfifo(fifo)
        # Open for both, so that neither end waits for the other.
        ears = os.open(fifo, os.O_RDWR)
        words = (bucket, journals, life.seed, life.point, life.count, life.steps, life.journal, first, fifo)
        os.write(self._orders, ("\t".join(map(str, words)) + "\n").encode())
        said = bytearray()
        os.set_blocking(ears, False)
        pid = self._answer()
        ends = time.monotonic() + (life.seconds if life.seconds is not None else 60.0)
        ended: int | None = None
        os.set_blocking(self._answers, False)
        while ended is None:
            said += _read(ears)
            with contextlib.suppress(BlockingIOError):
                ended = struct.unpack("<ii", os.read(self._answers, 8))[1]
            if ended is None and time.monotonic() > ends:
                os.kill(pid, signal.SIGKILL)
                ends += 3600.0
            time.sleep(0.0005)
        os.set_blocking(self._answers, True)
        said += _read(ears)
        os.close(ears)
        return ended, bytes(said)

    def _answer(self) -> int:
        found: int = struct.unpack("<ii", os.read(self._answers, 8))[1]
        return found

    def __enter__(self) -> Zygote:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._orders)
        os.waitpid(self.pid, 0)
        os.close(self._answers)


def _read(descriptor: int) -> bytes:
    found = bytearray()
    with contextlib.suppress(BlockingIOError):
        while data := os.read(descriptor, 65536):
            found += data
    return bytes(found)


@contextlib.contextmanager
def killed_again_and_again(
    zygote: Zygote, directory: Path, lives: list[Life], create: Callable[[Path], None]
) -> Iterator[Iterator[tuple[Life, int, History]]]:
    """Yield an iterator over the lives of one volume: each with its status and the history, before it is checked."""
    bucket, journals = directory / "bucket", directory / "journals"
    bucket.mkdir()
    create(bucket)
    history = History()

    def run() -> Iterator[tuple[Life, int, History]]:
        for number, life in enumerate(lives):
            status, said = zygote.live(bucket, journals, life, (number + 1) << 16)
            history.take(said)
            yield life, status, history
            if life.left:
                continue
            # A journal of its own would take most of the time, for its end.
            try:
                with open_volume(bucket, journals, journal=number % 4 == 0) as volume:
                    history.check(volume.read(0, SIZE))
            except BaseException as error:
                error.add_note(f"after the {number + 1}th life: {life}")
                raise

    yield run()
