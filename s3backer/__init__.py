"""Object storage as a disk.

``open`` gives a volume to read and write from Python; the ``s3backer`` command mounts it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from s3backer.volume import Volume

__version__ = "0.1.0"
__all__ = ["__version__", "open"]


def open(
    url: str,
    *,
    read_only: bool = False,
    memory: int = 256 << 20,
    threads: int = 64,
    write_delay: float = 5.0,
    force: bool = False,
    size: int | None = None,
    block_size: int | None = None,
    block_hash_prefix: bool = False,
    disk_cache: int | None = None,
    disk_cache_directory: str | None = None,
    journal: int = 0,
    journal_directory: str | None = None,
    compress: str | None = None,
    compress_level: int | None = None,
    encrypt: str | None = None,
    password: str | None = None,
    key_length: int = 0,
    default_content_encoding: str = "",
    endpoint_url: str | None = None,
    region: str | None = None,
    profile: str | None = None,
    access_key: str | None = None,
    secret_key: str | None = None,
    anonymous: bool = False,
    virtual_host: bool | None = None,
    ca_bundle: str | None = None,
    verify_tls: bool = True,
    timeout: float = 30.0,
) -> Volume:
    """Open the volume at ``url`` (``s3://BUCKET/PREFIX`` or ``file:///DIRECTORY``); it is a context manager.

    ``memory``, ``size`` and ``block_size`` are in bytes, ``write_delay`` and ``timeout`` in seconds; ``size`` and
    ``block_size`` are for volumes without metadata. ``disk_cache``: bytes for copies of blocks in
    ``disk_cache_directory``, which stay for the next time. ``compress`` (deflate, zstd, none) and ``encrypt`` (a
    cipher, such as AES-256-CBC) are as the volume is unless given; an encrypted one needs ``password``. While it is
    open for writing, nobody else can mount it.

    Raises S3backerError: UsageError, VolumeNotFound, VolumeInUse, WrongPassword, StoreError or CorruptObject.
    """
    # Imported here, so that the command's start-up stays quick.
    from s3backer.codec.choice import EncodingOptions
    from s3backer.opening import VolumeOptions
    from s3backer.stores import StoreOptions, open_store
    from s3backer.url import VolumeURL
    from s3backer.volume import Volume

    where = VolumeURL.parse(url)
    options = VolumeOptions(
        read_only=read_only,
        memory=memory,
        threads=threads,
        write_delay=write_delay,
        force=force,
        size=size,
        block_size=block_size,
        block_hash_prefix=block_hash_prefix,
        disk_cache=disk_cache,
        disk_cache_directory=disk_cache_directory,
        journal=journal,
        journal_directory=journal_directory,
        encoding=EncodingOptions(
            compress=compress,
            compress_level=compress_level,
            encrypt=encrypt,
            password=password,
            key_length=key_length,
            default_content_encoding=default_content_encoding,
        ),
    )
    store = open_store(
        where,
        StoreOptions(
            endpoint_url=endpoint_url,
            region=region,
            profile=profile,
            access_key=access_key,
            secret_key=secret_key,
            anonymous=anonymous,
            virtual_host=virtual_host,
            ca_bundle=ca_bundle,
            verify_tls=verify_tls,
            timeout=timeout,
            connections=threads,
        ),
    )
    try:
        return Volume.open(store, where.prefix, options)
    except BaseException:
        store.close()
        raise
