"""What compression and encryption cost: CPU beside the same blocks without, and whether they leave the GIL alone.

CPU is that of the whole process, user and system, over whole PUTs and GETs of blocks against a real server on the
same machine, so that signing, checksums and HTTP are in both figures, as they are in use.
"""

from __future__ import annotations

import random
import threading
import time
import zlib
from collections.abc import Callable, Iterator

import pytest

from perf.side_by_side import Report, compare, interleave
from s3backer.codec.block import BlockCodec
from s3backer.codec.choice import EncodingOptions, choose_codec
from s3backer.codec.compression import Compression
from s3backer.layouts.classic import ClassicLayout
from s3backer.stores.s3 import S3Store
from tests.support.servers import SeaweedServer

BLOCK = 128 << 10
BLOCKS = 64


def block_of_a_filesystem() -> bytes:
    """Return a block that deflate makes about half as large: words and noise in turns."""
    source = random.Random(1)
    words = [source.randbytes(6).hex().encode() for _ in range(300)]
    text = b" ".join(source.choice(words) for _ in range(BLOCK // 8))[: BLOCK // 2]
    return text + source.randbytes(BLOCK - len(text))


def codec(**options: object) -> BlockCodec:
    return choose_codec(EncodingOptions(**options), None, bucket="b", prefix="", block="block 0")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def store() -> Iterator[S3Store]:
    with SeaweedServer() as server:
        opened = S3Store(server.make_bucket(), server.options())
        yield opened
        opened.close()


def work(store: S3Store, chosen: BlockCodec, prefix: str) -> Callable[[], None]:
    """Return one round: store and read back every block."""
    layout = ClassicLayout(store, prefix, block_size=BLOCK, size=(BLOCKS + 1) * BLOCK, codec=chosen)
    data = block_of_a_filesystem()

    def run() -> None:
        for block in range(1, BLOCKS + 1):
            layout.write(block, data)
            assert layout.read(block) == data

    return run


@pytest.mark.parametrize(
    ("ours", "yardstick", "target"),
    [
        ({"encrypt": "AES-256-CBC", "compress": "deflate"}, {"compress": "deflate"}, 1 / 1.3),
        (
            {"encrypt": "AES-128-CBC", "compress": "deflate", "compress_level": 1},
            {"compress": "deflate", "compress_level": 1},
            1 / 1.3,
        ),
        ({"encrypt": "AES-256-CBC", "compress": "zstd"}, {"compress": "zstd"}, 1 / 1.3),
        ({"encrypt": "AES-256-CBC", "compress": "deflate", "compress_level": 0}, {"compress": "none"}, 1 / 2),
        ({"encrypt": "AES-128-CBC", "compress": "deflate", "compress_level": 0}, {"compress": "none"}, 1 / 2),
    ],
)  # fmt: skip
def test_encrypted_blocks_beside_the_same_ones_in_clear(
    ours: dict[str, object], yardstick: dict[str, object], target: float, store: S3Store, report: Report
) -> None:
    """At most 1.3 times the CPU of the same compression, at level 0 at most twice that of plain blocks."""
    names = [" ".join(str(value) for value in options.values()) for options in (ours, yardstick)]
    contenders = {
        name: work(store, codec(**({"password": "pw"} if "encrypt" in options else {}), **options), f"{number}/")
        for number, (name, options) in enumerate(zip(names, (ours, yardstick), strict=True))
    }
    times = interleave(contenders, clock=time.process_time)
    report.add(compare(times, names[0], [names[1]], target))


@pytest.mark.parametrize("name", ["deflate", "zstd"])
def test_two_threads_compress_twice_as_much(name: str, report: Report) -> None:
    """Two threads on two cores, beside one thread with half the work: 1 is no slower, 0.5 is one after the other."""
    chosen, data = Compression(name), block_of_a_filesystem()

    def compress() -> None:
        for _ in range(40 if name == "deflate" else 400):
            chosen.compress(data)

    def both() -> None:
        threads = [threading.Thread(target=compress) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    report.add(
        compare(interleave({f"{name}, two threads": both, "one": compress}), f"{name}, two threads", ["one"], 0.8)
    )


def test_deflate_is_zlibs(report: Report) -> None:
    chosen, data = Compression("deflate", 6), block_of_a_filesystem()
    times = interleave({"Compression": lambda: chosen.compress(data), "zlib": lambda: zlib.compress(data, 6)})
    report.add(compare(times, "Compression", ["zlib"], 0.9))
