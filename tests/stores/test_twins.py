"""Any sequence of calls has the same outcomes on every store as on the one in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, rule, run_state_machine_as_test

from s3backer.errors import StoreError
from s3backer.stores.base import ObjectStore
from s3backer.stores.directory import DirectoryStore
from s3backer.stores.memory import MemoryStore
from s3backer.stores.s3 import S3Store

KEYS = st.sampled_from(["a", "b", "d/a", "d/b", "d/e/f", "0 +%", "ü"])
BODIES = st.sampled_from([b"", b"1", b"2", b"\0" * 5000])
STARTS = st.sampled_from([0, 1, 2, 4999, 5000, 1 << 40])
METADATA = st.sampled_from([{}, {"m": "1"}, {"m": "2", "n": "x y"}])
TYPES = st.sampled_from(["application/x-s3backer-block", "application/octet-stream"])
ENCODINGS = st.sampled_from(["", "deflate"])


def lines(store: ObjectStore, prefix: str = "", **options) -> list[tuple[str, int, str]]:
    return [(entry.key, entry.size, entry.etag) for entry in store.list(prefix, **options).entries]


def outcome(call: Callable[[], object]) -> object:
    """Return what a call gives, errors included."""
    try:
        return call()
    except StoreError as error:
        return type(error), getattr(error, "key", None)


class Twins(RuleBasedStateMachine):
    """The same calls on a store and on MemoryStore have the same outcomes."""

    make: Callable[[], ObjectStore]
    #: MinIO takes no notice of the condition of a DELETE.
    ignores_conditions = False
    etags = Bundle("etags")

    def __init__(self) -> None:
        super().__init__()
        self.real = type(self).make()
        self.model = MemoryStore()

    def both(self, call: Callable[[ObjectStore], object]) -> object:
        expected = outcome(lambda: call(self.model))
        assert outcome(lambda: call(self.real)) == expected
        return expected

    @rule(target=etags, key=KEYS, body=BODIES, metadata=METADATA, kind=TYPES, encoding=ENCODINGS, new=st.booleans())
    def put(self, key, body, metadata, kind, encoding, new):
        return self.both(
            lambda store: store.put(
                key, body, metadata=metadata, content_type=kind, content_encoding=encoding, if_none_match=new
            )
        )

    @rule(key=KEYS, body=BODIES, metadata=METADATA, etag=consumes(etags))
    def put_over(self, key, body, metadata, etag):
        self.both(lambda store: store.put(key, body, metadata=metadata, if_match=str(etag)))

    @rule(target=etags, key=KEYS, body=st.lists(BODIES, max_size=3), large=st.booleans())
    def put_pieces(self, key, body, large):
        return self.both(lambda store: (store.put_large if large else store.put)(key, body))

    @rule(key=KEYS, start=STARTS, length=st.sampled_from([1, 2, 5000, 1 << 40]))
    def get_range(self, key, start, length):
        self.both(lambda store: store.get_range(key, start, length))

    @rule(key=KEYS, start=st.integers(0, 2), etag=consumes(etags))
    def get_range_if(self, key, start, etag):
        self.both(lambda store: store.get_range(key, start, 1, if_match=str(etag)))

    @rule(key=KEYS)
    def get(self, key):
        # By what a body was verified is each store's own.
        self.both(lambda store: replace(store.get(key), verified=""))

    @rule(key=KEYS)
    def head(self, key):
        self.both(lambda store: store.head(key))

    @rule(key=KEYS)
    def delete(self, key):
        self.both(lambda store: store.delete(key))

    @rule(key=KEYS, etag=consumes(etags))
    def delete_if(self, key, etag):
        present = key in {line[0] for line in lines(self.model)}
        if self.ignores_conditions and present and self.model.head(key).etag != etag:
            return
        self.both(lambda store: store.delete(key, if_match=str(etag)))

    @rule(prefix=st.sampled_from(["", "d", "d/", "z"]), after=st.one_of(st.just(""), KEYS), limit=st.integers(1, 4))
    def list(self, prefix, after, limit):
        self.both(
            lambda store: [
                *lines(store, prefix, start_after=after, limit=limit),
                store.list(prefix, start_after=after, limit=limit).truncated,
            ]
        )

    def teardown(self):
        self.both(lambda store: lines(store))
        self.real.close()


@pytest.mark.parametrize(("kind", "examples"), [("directory", 60), ("seaweed", 5), ("minio", 5)])
def test_any_sequence_of_calls_is_as_in_memory(kind, examples, tmp_path_factory, request):
    def make() -> ObjectStore:
        if kind == "directory":
            return DirectoryStore(tmp_path_factory.mktemp("twin"))
        server = request.getfixturevalue(kind)
        return S3Store(server.make_bucket(), server.options())

    machine = type("Machine", (Twins,), {"make": staticmethod(make), "ignores_conditions": kind == "minio"})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=True,
        ),
    )
