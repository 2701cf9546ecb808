r"""The words of the original's form: options anywhere on the line or in configuration files, the last one wins.

    --NAME   --NAME=VALUE   -o NAME[=VALUE],…   -oNAME…   -F FILE   -f -d -s      everything else is a place

``\,`` keeps a comma in a value of ``-o``, ``\054`` is one. A configuration file holds one argument a line; its lines
stand where the option that names it stood.
"""

from __future__ import annotations

import difflib
import os
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from s3backer.config import Option
from s3backer.errors import UsageError
from s3backer.frontends.fuse_options import FuseWords, sort_out
from s3backer.original_options import ORIGINAL, OriginalOption

FORM = "The form is: s3backer [options] BUCKET[/PREFIX] MOUNTPOINT; see 's3backer --help-original'."
_SHORT = {"-f": ("foreground",), "-d": ("debug", "foreground"), "-s": ()}
_MOST_FILES = 100
_LONGEST_LINE = 1024


@dataclass(slots=True)
class Words:
    """What was said: values by our names (``given`` has the flags by theirs), FUSE's options, and the places."""

    values: dict[str, Any] = field(default_factory=dict)
    given: set[str] = field(default_factory=set)
    fuse: FuseWords = field(default_factory=lambda: FuseWords(()))
    places: list[str] = field(default_factory=list)


def parse(arguments: list[str]) -> Words:
    """Return what the arguments say. Raises UsageError, naming the option, for what cannot be meant."""
    said = Words()
    fuse_words: list[str] = []
    rest = deque(arguments)
    files = 0

    def insert(path: str) -> None:
        nonlocal files
        files += 1
        if files > _MOST_FILES:
            raise UsageError(f"more than {_MOST_FILES} configuration files", hint="Does one of them name itself?")
        rest.extendleft(reversed(read_config_file(path)))

    while rest:
        word = rest.popleft()
        if word == "--":
            said.places += rest
            break
        if word in ("--version", "-v", "--help", "-h", "-?", "--help-original"):
            said.values["show"] = "version" if "v" in word else "help"
        elif word in _SHORT:
            said.values |= dict.fromkeys(_SHORT[word], True)
        elif word == "-F":
            if not rest:
                raise UsageError("-F needs a file after it", hint="Write -F FILE.")
            insert(rest.popleft())
        elif word.startswith("-o"):
            text = word[2:] or (rest.popleft() if rest else "")
            if not text:
                raise UsageError("-o needs options after it", hint="Write for example -o size=10g,blockSize=128k.")
            parts = split_options(text)
            # In the order in which they stand, also those of a configuration file among them.
            for index, part in enumerate(parts):
                name, _, value = part.partition("=")
                if name == "configFile":
                    later = ",".join(re.sub(r"([\\,])", r"\\\1", other) for other in parts[index + 1 :])
                    rest.extendleft([later, "-o"] if later else [])
                    insert(_needed(ORIGINAL[name], value))
                    break
                if name in ORIGINAL:
                    _take(part, said)
                else:
                    fuse_words.append(part)
        elif word.startswith("--"):
            name, _, value = word[2:].partition("=")
            if name == "configFile":
                insert(_needed(ORIGINAL[name], value))
            else:
                _take(word[2:], said)
        elif word.startswith("-") and len(word) > 1:
            raise UsageError(f"there is no option {word}", hint=FORM)
        else:
            said.places.append(word)
    said.fuse = sort_out(fuse_words, ORIGINAL)
    return said


def split_options(text: str) -> list[str]:
    """Return the options of a list by libfuse's rule: a backslash keeps a comma, or begins a byte of 3 octal digits."""
    parts = re.findall(rb"(?:\\.|[^,])+", os.fsencode(text), re.DOTALL)
    found = [os.fsdecode(re.sub(rb"\\([0-3][0-7]{2}|.)", _unescaped, part, flags=re.DOTALL)) for part in parts]
    if any("\0" in part for part in found):
        raise UsageError(r"behind -o stands \000, which no option may hold", hint="Leave it out.")
    return found


def _unescaped(escape: re.Match[bytes]) -> bytes:
    return bytes([int(escape[1], 8)]) if len(escape[1]) == 3 else escape[1]


def read_config_file(path: str) -> list[str]:
    """Return the arguments in a configuration file: its lines, without blank ones and comments."""
    try:
        # Lines and white space as C has them: a password may hold what Unicode counts as either.
        with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            lines = file.read(_LONGEST_LINE * 10_000).split("\n")
    except OSError as error:
        raise UsageError(
            f"configuration file {path} cannot be read: {error.strerror}", hint="Check its name."
        ) from None
    except ValueError:
        raise UsageError(f"{path!r} is no name of a file", hint="Check it.") from None
    for number, line in enumerate(lines, 1):
        if len(line) >= _LONGEST_LINE:
            raise UsageError(f"{path}: line {number} is too long", hint=f"A line has less than {_LONGEST_LINE} bytes.")
        if "\0" in line:
            raise UsageError(f"{path}: line {number} has a NUL in it", hint="Name a file of text, one argument a line.")
    stripped = [line.strip(" \t\n\v\f\r") for line in lines]
    return [line for line in stripped if line and not line.startswith("#")]


def _take(text: str, said: Words) -> None:
    name, equals, value = text.partition("=")
    option = ORIGINAL.get(name)
    if option is None:
        near = difflib.get_close_matches(name, ORIGINAL, 1)
        raise UsageError(f"there is no option --{name}", hint=f"Did you mean --{near[0]}?" if near else FORM)
    if option.treatment == "refused":
        raise UsageError(f"{name} is not done here: {option.note}", hint="Leave it out, or use the original for it.")
    if option.convert is None and equals:
        raise UsageError(f"{name} takes no value", hint=f"Write --{name}.")
    if option.convert is None:
        result = option.value
    elif not equals and option.bare is not None:
        result = option.bare
    else:
        result = converted(option, _needed(option, value) if not equals else value)
    said.given.add(name)
    if option.name:
        said.values[option.name] = result
    if name == "region":
        said.values.setdefault("virtual_host", True)


def _needed(option: OriginalOption, value: str) -> str:
    if not value:
        raise UsageError(
            f"{option.flag} needs a value", hint=f"Write --{option.flag}={option.metavar}, with the equals sign."
        )
    return value


def converted(option: Option | OriginalOption, value: str) -> Any:
    """Return what a value of an option means; UsageError names the option."""
    convert: Callable[[str], Any] | None = option.convert
    assert convert is not None
    try:
        return convert(value)
    except UsageError as error:
        raise UsageError(f"{option.flag}: {error.message}", hint=error.hint) from None
