"""What the commands share: options from the table, stores from URLs, the running daemon, progress."""

from __future__ import annotations

import contextlib
import getpass
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import click

from s3backer.config import DEBUG, STORE, Option, store_options
from s3backer.control.asking import ask
from s3backer.control.sockets import socket_name
from s3backer.errors import UsageError, VolumeInUse
from s3backer.logs import Redacting, configure_logging
from s3backer.stores import open_store
from s3backer.stores.base import ObjectStore
from s3backer.url import VolumeURL

_F = TypeVar("_F", bound=Callable[..., Any])
#: Longest sum of pauses in seconds for a command that somebody waits for, so that an error comes soon.
_PATIENCE = 5.0
#: Seconds without a stored block before it is said that the store is waited for.
_STALL_SECONDS = 10.0


class _Value(click.ParamType[Any]):
    """A converter of the option table as click wants it."""

    def __init__(self, option: Option) -> None:
        self.name = option.metavar or "TEXT"
        self._option = option

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        assert self._option.convert is not None
        try:
            return self._option.convert(value) if isinstance(value, str) else value
        except UsageError as error:
            raise UsageError(f"{self._option.flag}: {error.message}", hint=error.hint) from None


def options(*wanted: Option, required: tuple[str, ...] = ()) -> Callable[[_F], _F]:
    """Give a command these options of the table, and those of every command."""

    def decorate(function: _F) -> _F:
        for option in reversed((*wanted, *STORE, DEBUG)):
            names = [option.name, option.flag, *([option.alias] if option.alias else [])]
            if option.convert is None:
                click.option(*names, flag_value=option.value, default=None, help=option.help, type=bool)(function)
            else:
                click.option(
                    *names,
                    type=_Value(option),
                    metavar=option.metavar,
                    help=option.help,
                    required=option.name in required,
                )(function)
        return function

    return decorate


def run_command(command: click.Command, words: Sequence[str]) -> int:
    """Run one command; click's own complaints become ours."""
    try:
        result = command.main(list(words), prog_name=f"s3backer {command.name}", standalone_mode=False)
    except click.exceptions.NoSuchOption as error:
        if re.match(r"-[0-9]", error.option_name):
            # Of several letters behind one dash click names only the first.
            word = next(word for word in words if word.startswith(error.option_name))
            raise UsageError(
                f"{word} is neither an option nor a size", hint=f"Write the whole size, such as 10GiB. {_see(command)}"
            ) from None
        near = f"Did you mean {' or '.join(error.possibilities)}?" if error.possibilities else _see(command)
        raise UsageError(f"there is no option {error.option_name}", hint=near) from None
    except click.exceptions.MissingParameter as error:
        name = error.param.get_error_hint(error.ctx) if error.param and error.ctx else "an argument"
        raise UsageError(f"{command.name} needs {name}".replace("'", ""), hint=_see(command)) from None
    except click.exceptions.ClickException as error:
        text = re.sub(r"\.$", "", error.format_message())
        raise UsageError(text[:1].lower() + text[1:], hint=_see(command)) from None
    except click.exceptions.Abort:
        raise KeyboardInterrupt from None
    return result if isinstance(result, int) else 0


def with_password(values: dict[str, Any]) -> dict[str, Any]:
    """Return the options with a password, asked for on the terminal where a cipher was given without one."""
    if values.get("encrypt") is None or values.get("password") is not None:
        return values
    if not sys.stdin.isatty():
        raise UsageError("encryption needs a password", hint="Give it with --password-file.")
    password = getpass.getpass("Password: ")
    if not password:
        raise UsageError("an empty password protects nothing", hint="Type it again.")
    return {**values, "password": password}


def _see(command: click.Command) -> str:
    return f"See 's3backer {command.name} --help'."


class Target:
    """The volume that a command is about: its URL, its store, and the daemon that may serve it on this host.

    ``beside``: another one that the same command is about; the log keeps the secrets of both.
    """

    def __init__(self, url: str, values: dict[str, Any], beside: Target | None = None) -> None:
        self.url = VolumeURL.parse(url)
        kept = None if beside is None else beside._redacting
        redacting = configure_logging(True, bool(values.get("debug")), quiet=True, redacting=kept)
        self._redacting: Redacting = redacting
        chosen = store_options({"patience": _PATIENCE, **values})
        redacting.register(chosen.secret_key)
        redacting.register(values.get("password"))
        self.store: ObjectStore = open_store(self.url, chosen)
        self.id = socket_name(self.store, self.url.prefix)

    def ask(
        self,
        command: str,
        arguments: dict[str, object] | None = None,
        on_progress: Callable[[dict[str, object]], None] | None = None,
    ) -> dict[str, object] | None:
        """Ask the daemon of this volume on this host, of several the one that has it; None if there is none."""
        return ask(self.id, command, arguments, on_progress)

    def refuse_if_served(self, hint: str) -> None:
        """Raise VolumeInUse if a daemon serves this volume on this host."""
        facts = self.ask("info")
        if facts is not None:
            raise VolumeInUse(
                f"{self.url} is mounted here on {facts.get('mountpoint')} by process {facts.get('pid')}", hint=hint
            )

    def __enter__(self) -> Target:
        return self

    def __exit__(self, *_: object) -> None:
        self.store.close()


@contextlib.contextmanager
def progress(text: str) -> Iterator[Callable[[int, int | None], None]]:
    """Show (done, total) on a terminal; total None or 0 where it is not known. Shows nothing elsewhere."""
    with _progress(text) as (show, _):
        yield show


@contextlib.contextmanager
def _progress(text: str) -> Iterator[tuple[Callable[[int, int | None], None], Callable[[str], None]]]:
    """Like ``progress``, and with a way to say a line beside it, on standard error in any case."""
    if not sys.stderr.isatty():
        yield lambda done, total: None, lambda line: print(line, file=sys.stderr, flush=True)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(text, total=None)
        yield (
            lambda done, total: bar.update(task, completed=done, total=total or None),
            lambda line: bar.console.print(line, markup=False, highlight=False, soft_wrap=True),
        )


def why_not_stored(facts: Mapping[str, object]) -> tuple[str, str] | None:
    """Return what keeps a daemon from storing blocks, and why; None while nothing does. ``facts``: what it reports."""
    error = facts.get("write_back_error")
    if not isinstance(error, str):
        return None
    if facts.get("lost"):
        return "volume is lost", f"{error}; nothing is stored from here any more"
    return "write-back fails", f"{error}; it is tried again"


@contextlib.contextmanager
def unsaved_progress() -> Iterator[Callable[[dict[str, object]], None]]:
    """Show a daemon's reports of the blocks that it has still to store, and why it cannot."""
    with _progress("storing blocks") as (show, say):
        yield _Storing(show, say)


class _Storing:
    """Hears a daemon's reports; that nothing can be stored, and why, is said once, and again when that changes."""

    def __init__(self, show: Callable[[int, int | None], None], say: Callable[[str], None]) -> None:
        self._show, self._say = show, say
        self._most = 0
        self._left, self._moved = 0, time.monotonic()
        self._said = ""

    def __call__(self, facts: dict[str, object]) -> None:
        left, why = facts.get("unsaved_blocks"), why_not_stored(facts)
        if not isinstance(left, int):
            return
        self._most = max(self._most, left)
        self._show(self._most - left, self._most)
        now = time.monotonic()
        if left != self._left:
            self._left, self._moved = left, now
        if why is not None:
            self._tell(": ".join(why))
        elif left and now - self._moved >= _STALL_SECONDS and not self._said:
            seconds, what = facts.get("stores_in"), f"{left} blocks are not stored yet"
            if isinstance(seconds, float) and seconds > 0:
                self._tell(f"waits {seconds:.0f} s for requests of the mount before that may still arrive: {what}")
            else:
                self._tell(f"waiting for the store: {what}")

    def _tell(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self._say(text)
