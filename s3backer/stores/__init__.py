"""Stores: named objects in a bucket, a directory or memory.

``open_store`` is the one place that turns a volume's URL into a store. Nothing is contacted yet: a bucket
that is missing shows at the first call. How the store was named is noted for the commands that errors tell to run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from s3backer.hints import note_store
from s3backer.stores.options import StoreOptions

if TYPE_CHECKING:
    from s3backer.stores.base import ObjectStore
    from s3backer.url import VolumeURL

__all__ = ["StoreOptions", "open_store"]


def open_store(url: VolumeURL, options: StoreOptions) -> ObjectStore:
    """Return the store of a volume's URL; UsageError or AccessDenied where the options do not do."""
    if url.scheme == "file":
        from s3backer.stores.directory import DirectoryStore

        return DirectoryStore(url.path)
    # Imported here: a local volume needs neither urllib3 nor botocore, and they take most of the start-up.
    from s3backer.stores.s3 import S3Store

    store = S3Store(url.bucket, options)
    note_store(str(url), options.named())
    return store
