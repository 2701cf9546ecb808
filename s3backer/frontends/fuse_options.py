"""The mount options that may stand behind ``-o`` beside those of s3backer: libfuse's, the kernel's and mount(8)'s.

Light enough to be read before anything is mounted. ``FLAGS``, ``NUMBERS`` and ``TEXTS`` reach libfuse 2.9; the others
are either answered here (``uid``, ``gid``) or have no effect on a disk: they belong to mount(8) and systemd, or steer
how libfuse's path-based layer, which is not used, caches names.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from s3backer.errors import UsageError

FLAGS = frozenset(
    [
        "allow_other",
        "allow_root",
        "async",
        "async_read",
        "atime",
        "auto_unmount",
        "big_writes",
        "default_permissions",
        "dev",
        "dirsync",
        "exec",
        "no_splice_move",
        "no_splice_read",
        "no_splice_write",
        "noatime",
        "nodev",
        "noexec",
        "nonempty",
        "nosuid",
        "ro",
        "rw",
        "splice_move",
        "splice_read",
        "splice_write",
        "suid",
        "sync",
        "sync_read",
    ]
)
NUMBERS = frozenset(["congestion_threshold", "max_background", "max_read", "max_readahead", "max_write"])
TEXTS = frozenset(["context", "defcontext", "fscontext", "fsname", "rootcontext", "subtype"])
_OWNERS = frozenset(["uid", "gid"])
_NO_EFFECT = frozenset(
    [
        "_netdev",
        "auto",
        "noauto",
        "defaults",
        "nofail",
        "user",
        "users",
        "nouser",
        "owner",
        "group",
        "relatime",
        "norelatime",
        "strictatime",
        "nostrictatime",
        "lazytime",
        "nolazytime",
        "diratime",
        "nodiratime",
        "iversion",
        "noiversion",
        "kernel_cache",
        "auto_cache",
        "noauto_cache",
        "use_ino",
        "readdir_ino",
        "hard_remove",
        "intr",
        "nointr",
        "noforget",
        "direct_io",
        "large_read",
        "silent",
        "loud",
    ]
)
_NO_EFFECT_VALUES = frozenset(
    [
        "comment",
        "user",
        "attr_timeout",
        "entry_timeout",
        "negative_timeout",
        "ac_attr_timeout",
        "intr_signal",
        "remember",
    ]
)


@dataclass(frozen=True, slots=True)
class FuseWords:
    """What was behind ``-o``: libfuse's options, and who owns the files (None: who mounts)."""

    options: tuple[str, ...]
    uid: int | None = None
    gid: int | None = None

    @property
    def read_only(self) -> bool:
        """Whether the last word on it was ``ro``."""
        return next((word == "ro" for word in reversed(self.options) if word in ("ro", "rw")), False)


def has_no_effect(word: str) -> bool:
    """Whether a word is addressed to somebody else, or changes nothing on a disk."""
    name, equals, _ = word.partition("=")
    return word in _NO_EFFECT or bool(equals and name in _NO_EFFECT_VALUES) or name.startswith(("x-", "X-"))


def sort_out(words: Sequence[str], others: Iterable[str] = ()) -> FuseWords:
    """Return what the words mean; UsageError, with the nearest of them and of ``others``, for one that is unknown."""
    kept: list[str] = []
    owners: dict[str, int] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if name in _OWNERS and re.fullmatch("[0-9]{1,9}", value):
            owners[name] = int(value)
        elif (
            (not equals and name in FLAGS)
            or (name in NUMBERS and re.fullmatch("[0-9]{1,9}", value))
            or (name in TEXTS and value)
        ):
            kept.append(word)
        elif has_no_effect(word):
            continue
        else:
            known = sorted({*FLAGS, *NUMBERS, *TEXTS, *_OWNERS, *others})
            near = difflib.get_close_matches(name, known, 1)
            value_is_wrong = name in known
            raise UsageError(
                f"the value of mount option {word!r} cannot be used"
                if value_is_wrong
                else f"there is no mount option {name!r}",
                hint="Change it." if value_is_wrong else f"Did you mean {near[0]}?" if near else "Leave it out.",
            )
    return FuseWords(tuple(kept), owners.get("uid"), owners.get("gid"))
