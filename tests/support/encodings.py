"""Bodies of one block with Content-Encodings, and which of them a reader of the format accepts."""

from __future__ import annotations

import zlib

import zstandard

SIZE = 4096
PLAIN = b"some of this " * 20 + bytes(SIZE - 260)
DEFLATED, ZSTD = zlib.compress(PLAIN), zstandard.compress(PLAIN)


def raw_deflate() -> bytes:
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(PLAIN) + stream.flush()


def zstd_with(checksum: bool = False, content_size: bool = True) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=checksum, write_content_size=content_size).compress(PLAIN)


def zstd_streamed() -> bytes:
    stream = zstandard.ZstdCompressor().compressobj()
    return stream.compress(PLAIN) + stream.flush()


#: Content-Encoding, body, and whether it is the block ``PLAIN``.
PLAIN_OBJECTS: list[tuple[str, bytes, bool]] = [
    ("", PLAIN, True),
    ("", PLAIN[:100], False),
    ("", PLAIN[:-1], False),
    ("", PLAIN + b"\0", False),
    ("", PLAIN * 4, False),
    ("", b"", False),
    ("identity", PLAIN, False),
    ("gzip", PLAIN, False),
    ("gzip", zlib.compress(PLAIN, wbits=31), False),
    ("br", PLAIN, False),
    ("aws-chunked", PLAIN, False),
    ("deflate", DEFLATED, True),
    ("DEFLATE", DEFLATED, True),
    ("Deflate", DEFLATED, True),
    (" deflate ", DEFLATED, True),
    ("\tdeflate", DEFLATED, True),
    (",,deflate,", DEFLATED, True),
    ("deflate;q=1", DEFLATED, False),
    ("deflat", DEFLATED, False),
    ("deflate, deflate", zlib.compress(DEFLATED), False),
    ("deflate,deflate", DEFLATED, False),
    ("aws-chunked,deflate", DEFLATED, False),
    ("deflate,aws-chunked", DEFLATED, False),
    ("identity, deflate", DEFLATED, False),
    ("deflate, zstd", ZSTD, False),
    ("deflate", PLAIN, False),
    ("deflate", b"", False),
    ("deflate", raw_deflate(), False),
    ("deflate", zlib.compress(PLAIN, wbits=31), False),
    ("deflate", zlib.compress(PLAIN[:-1]), False),
    ("deflate", zlib.compress(PLAIN + b"\0"), False),
    ("deflate", zlib.compress(PLAIN * 4), False),
    ("deflate", zlib.compress(b""), False),
    ("deflate", DEFLATED[:-1], False),
    ("deflate", DEFLATED[:-4], False),
    ("deflate", DEFLATED[:-4] + b"abcd", False),
    ("deflate", DEFLATED + b"\0", False),
    ("deflate", DEFLATED + DEFLATED, False),
    ("deflate", zlib.compress(PLAIN, 0), True),
    ("deflate", zlib.compress(PLAIN, 9), True),
    ("zstd", ZSTD, True),
    ("ZSTD", ZSTD, True),
    ("zstd", zstd_with(checksum=True), True),
    ("zstd", zstd_with(content_size=False), True),
    ("zstd", zstd_streamed(), True),
    ("zstd", zstandard.compress(PLAIN[:99]) + zstandard.compress(PLAIN[99:]), True),
    ("zstd", b"\x50\x2a\x4d\x18\x03\0\0\0abc" + ZSTD, True),
    ("zstd", ZSTD + b"\x5f\x2a\x4d\x18\x03\0\0\0abc", True),
    ("zstd", ZSTD + b"\x50\x2a\x4d\x18\x04\0\0\0abc", False),
    ("zstd", ZSTD + b"\x50\x2a\x4d\x18\x04", False),
    ("zstd, zstd", zstandard.compress(ZSTD), False),
    ("zstd", PLAIN, False),
    ("zstd", b"", False),
    ("zstd", DEFLATED, False),
    ("zstd", zstandard.compress(PLAIN[:-1]), False),
    ("zstd", zstandard.compress(PLAIN + b"\0"), False),
    ("zstd", zstandard.compress(PLAIN * 4), False),
    ("zstd", zstandard.compress(b""), False),
    ("zstd", ZSTD[:-1], False),
    ("zstd", ZSTD[:5], False),
    ("zstd", zstd_with(checksum=True)[:-1], False),
    ("zstd", zstd_with(checksum=True)[:-4], False),
    ("zstd", zstd_with(checksum=True)[:-4] + b"abcd", False),
    ("zstd", zstd_streamed()[:-1], False),
    ("zstd", zstd_streamed()[:-3], False),
    ("zstd", ZSTD + b"\0", False),
    ("zstd", ZSTD + b"abcd", False),
    ("zstd", ZSTD + ZSTD[:4], False),
    ("zstd", ZSTD + ZSTD, False),
    ("encrypt-AES-128-CBC", PLAIN, False),
    ("encrypt-", PLAIN, False),
    ("encrypt", PLAIN, False),
]
