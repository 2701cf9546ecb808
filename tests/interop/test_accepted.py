"""Objects put by hand: what Debian's s3backer accepts as a block, and what ours does; the differences are listed."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import s3backer
from s3backer.codec.encryption import SIGNATURE_METADATA
from s3backer.errors import CorruptObject
from s3backer.layouts.classic import META_BLOCK_SIZE, META_SIZE, block_name
from s3backer.stores.s3 import S3Store
from tests.support.encodings import DEFLATED, PLAIN, PLAIN_OBJECTS, SIZE, raw_deflate
from tests.support.encryption_twin import EncryptionTwin
from tests.support.mounts import needs_mounts
from tests.support.original import ORIGINAL, needs_original, program_mounted, reach
from tests.support.servers import S3Server

pytestmark = [needs_mounts, needs_original]

CIPHER, PASSWORD, PREFIX = "AES-128-CBC", "password", "p/"
Object = tuple[str, bytes, Mapping[str, str]]


def accepted_by_both(
    server: S3Server, directory: Path, make: Callable[[EncryptionTwin], Sequence[Object]], password: str | None
) -> tuple[Sequence[Object], set[int], set[int]]:
    """Put objects as the blocks from 1 on; return them and those that the original and ours accept."""
    bucket = server.make_bucket()
    options = server.options()
    store = S3Store(bucket, options)
    twin = EncryptionTwin(CIPHER, PASSWORD, bucket, PREFIX)
    objects = make(twin)
    size = (len(objects) + 1) * SIZE
    volume_says = {META_BLOCK_SIZE: str(SIZE), META_SIZE: str(size)}
    body, signature = twin.encrypt(0, DEFLATED)
    first: Object = (f"deflate, encrypt-{CIPHER}", body, {SIGNATURE_METADATA: f'"{signature}"'})
    for number, (encoding, body, metadata) in enumerate([first if password else ("", PLAIN, {}), *objects]):
        more = volume_says if number == 0 else {}
        key = PREFIX + block_name(number)
        store.put(key, body, content_encoding=encoding, metadata={**metadata, **more})
        # What the server made of it would not be tested.
        assert store.head(key).content_encoding == encoding
    store.close()
    words = [f"--encrypt={CIPHER}", f"--password={PASSWORD}"] if password else []
    words += [
        "--directIO",
        "--readAhead=0",
        "--readOnly",
        "--maxRetryPause=200",
        *reach(server),
        f"--prefix={PREFIX}",
        bucket,
    ]
    theirs, ours = set(), set()
    with program_mounted(ORIGINAL, directory / "mnt", *words) as file:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            for number in range(1, len(objects) + 1):
                try:
                    data = os.pread(descriptor, SIZE, number * SIZE)
                except OSError:
                    continue
                assert data == PLAIN
                theirs.add(number - 1)
        finally:
            os.close(descriptor)
    with s3backer.open(
        f"s3://{bucket}/{PREFIX}",
        read_only=True,
        password=password,
        endpoint_url=options.endpoint_url,
        region=options.region,
        access_key=options.access_key,
        secret_key=options.secret_key,
    ) as volume:
        for number in range(1, len(objects) + 1):
            try:
                data = volume.read(number * SIZE, SIZE)
            except CorruptObject:
                continue
            assert data == PLAIN
            ours.add(number - 1)
    return objects, theirs, ours


def test_plain_volumes(seaweed: S3Server, tmp_path: Path) -> None:
    """Without white space at the ends, which no header keeps; MinIO takes aws-chunked for its own and drops it."""
    rows = [row for row in PLAIN_OBJECTS if row[0] == row[0].strip()]
    objects, theirs, ours = accepted_by_both(seaweed, tmp_path, lambda _: [(e, b, {}) for e, b, _ in rows], None)
    assert ours == {number for number, (_, _, accepted) in enumerate(rows) if accepted}
    assert {objects[number][0].lower() for number in ours - theirs} == {"zstd"}
    assert {objects[number][:2] for number in theirs - ours} == {
        ("deflate", DEFLATED + b"\0"),
        ("deflate", DEFLATED + DEFLATED),
    }


def test_encrypted_volumes(s3_server: S3Server, tmp_path: Path) -> None:
    wanted: list[bool] = []

    def make(twin: EncryptionTwin) -> list[Object]:
        found: list[Object] = []

        def add(accepted: bool, encoding: str, data: bytes, signature: str = '"{}"') -> None:
            body, signed = twin.encrypt(len(found) + 1, data)
            text = signature.format(signed)
            found.append((encoding, body, {SIGNATURE_METADATA: text} if text else {}))
            wanted.append(accepted)

        add(True, "deflate, encrypt-AES-128-CBC", DEFLATED)
        add(True, "deflate,encrypt-AES-128-CBC", DEFLATED)
        add(True, "DEFLATE, ENCRYPT-aes-128-cbc", DEFLATED)
        add(True, "encrypt-AES-128-CBC", PLAIN)
        add(True, "deflate, encrypt-AES-128-CBC", zlib.compress(PLAIN, 0))
        add(False, "encrypt-AES-128-CBC", PLAIN[:-1])
        add(False, "encrypt-AES-128-CBC", DEFLATED)
        add(False, "deflate, encrypt-AES-128-CBC", PLAIN)
        add(False, "deflate, encrypt-AES-128-CBC", raw_deflate())
        add(False, "deflate, encrypt-AES-128-CBC", zlib.compress(PLAIN * 2))
        add(False, "deflate, encrypt-AES-128-CBC", DEFLATED[:-1])
        add(False, "deflate, deflate, encrypt-AES-128-CBC", zlib.compress(DEFLATED))
        add(False, "encrypt-AES-128-CBC, deflate", DEFLATED)
        add(False, "deflate, encrypt-AES-256-CBC", DEFLATED)
        add(False, "deflate, encrypt-", DEFLATED)
        add(False, "deflate", DEFLATED)
        add(False, "", PLAIN)
        add(False, "deflate, encrypt-AES-128-CBC", DEFLATED, "")
        add(False, "deflate, encrypt-AES-128-CBC", DEFLATED, f'"{"0" * 40}"')
        add(False, "deflate, encrypt-AES-128-CBC", DEFLATED, '"{:.39}"')
        return found

    _, theirs, ours = accepted_by_both(s3_server, tmp_path, make, PASSWORD)
    assert ours == {number for number, accepted in enumerate(wanted) if accepted}
    assert theirs == ours
