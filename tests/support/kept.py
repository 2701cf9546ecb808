"""A store in memory that keeps checksums like a server does, and loses or alters what it was told to."""

from __future__ import annotations

from dataclasses import replace

from s3backer.errors import CorruptObject, ObjectNotFound, StoreError
from s3backer.stores.base import StoredObject
from s3backer.stores.memory import MemoryStore


class KeepingStore(MemoryStore):
    """``kept``: by what each object can be verified, ``default`` where it does not stand there.

    ``altered``: keys whose bodies are not those that were put any more; ``failing``: keys that cannot be read;
    ``lost``: keys that are listed and not there.
    """

    def __init__(self, name: str = "memory:kept", default: str = "") -> None:
        super().__init__(name)
        self.default = default
        self.kept: dict[str, str] = {}
        self.altered: set[str] = set()
        self.failing: set[str] = set()
        self.lost: set[str] = set()
        #: GETs so far by key.
        self.gets: dict[str, int] = {}

    def get(self, key: str, *, at_most: int | None = None) -> StoredObject:
        self.gets[key] = self.gets.get(key, 0) + 1
        if key in self.failing:
            raise StoreError(f"object {key!r} cannot be read", hint="Try again.")
        if key in self.lost:
            raise ObjectNotFound(key)
        found = super().get(key, at_most=at_most)
        shown = self.kept.get(key, self.default)
        if shown and key in self.altered:
            raise CorruptObject(f"object {key!r} is not what was put", hint="It was altered.")
        return replace(found, verified=shown)

    def flip(self, key: str, at: int = -1) -> None:
        """Alter one byte of a body, behind the back of whatever verifies it."""
        found = self._objects[key]
        body = bytearray(found.body)
        body[at] ^= 0x55
        self._objects[key] = replace(found, body=bytes(body))
        self.altered.add(key)

    def describe(self, key: str, **facts: object) -> None:
        """Change what is said about an object beside its body."""
        found = self._objects[key]
        self._objects[key] = replace(found, info=replace(found.info, **facts))  # type: ignore[arg-type]

    def move(self, key: str, other: str) -> None:
        """Put an object, with all that is said about it, into another's place."""
        found = self._objects[key]
        self._objects[other] = replace(found, info=replace(found.info, key=other))

    def lose(self, key: str) -> None:
        """Remove an object."""
        del self._objects[key]
