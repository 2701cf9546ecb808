"""Man pages and completions, made from the descriptions that --help shows.

A page or completion thus never says anything else than the program. ``pages`` and ``completions`` return texts by the
names of their files.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import click

from s3backer import __version__
from s3backer.cli import COMMANDS, module_of
from s3backer.original_options import ORIGINAL
from s3backer.system.texts import BASH, FILES, FISH, FSTAB, INTRODUCTION, UNIT_TEXT, ZSH


def commands() -> dict[str, click.Command]:
    """Return every command by its name."""
    return {name: importlib.import_module(module_of(name)).command for name in COMMANDS}


# ── man pages ────────────────────────────────────────────────────────────────────────────────────────────────────


def pages(marker: str) -> dict[str, str]:
    """Return the man pages; ``marker`` stands in a comment of each."""
    found = commands()
    names = [f"s3backer-{name}" for name in found]
    texts = {f"s3backer-{name}.1": _command_page(name, command) for name, command in found.items()}
    texts["s3backer.1"] = _main_page(found, names)
    texts["mount.s3backer.8"] = _helper_page()
    return {name: f'.\\" {marker}\n{text}' for name, text in texts.items()}


def _escape(text: str) -> str:
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")
    return f"\\&{text}" if text.startswith(".") else text


def _title(name: str, section: int, what: str) -> list[str]:
    return [
        f'.TH {_escape(name.upper())} {section} "" "s3backer {__version__}" "s3backer"',
        ".SH NAME",
        f"{_escape(name)} \\- {_escape(what)}",
    ]


def _prose(text: str) -> Iterator[str]:
    """Yield paragraphs; those that are indented stay as they are."""
    for paragraph in text.strip("\n").split("\n\n"):
        lines = paragraph.split("\n")
        if lines[0].startswith("    "):
            yield from (".PP", ".nf", ".RS", *(_escape(line[4:]) for line in lines), ".RE", ".fi")
        else:
            yield from (".PP", *(_escape(line.strip()) for line in lines))


def _entry(term: str, text: str) -> list[str]:
    return [".TP", f"\\fB{_escape(term)}\\fR", _escape(text)]


def _help(command: click.Command) -> str:
    """Return a command's help text with its line breaks undone."""
    return "\n\n".join(" ".join(part.split()) for part in (command.help or "").split("\n\n"))


def _summary(command: click.Command) -> str:
    first = _help(command).partition("\n\n")[0].partition(". ")[0].rstrip(".")
    return first[:1].lower() + first[1:]


def _command_page(name: str, command: click.Command) -> str:
    context = click.Context(command, info_name=f"s3backer {name}")
    lines = [*_title(f"s3backer-{name}", 1, _summary(command)), ".SH SYNOPSIS"]
    lines.append(f"\\fBs3backer {_escape(name)}\\fR {_escape(' '.join(command.collect_usage_pieces(context)))}")
    lines += [".SH DESCRIPTION", *_prose(_help(command)), ".SH OPTIONS"]
    for parameter in command.get_params(context):
        # Arguments are explained in the text; not every version of click has records for them.
        record = parameter.get_help_record(context) if isinstance(parameter, click.Option) else None
        if record is not None:
            lines += _entry(*record)
    lines += [".SH SEE ALSO", ".BR s3backer (1)"]
    return "\n".join(lines) + "\n"


def _main_page(found: dict[str, click.Command], names: list[str]) -> str:
    lines = [*_title("s3backer", 1, "a bucket as a disk"), ".SH SYNOPSIS"]
    lines += ["\\fBs3backer\\fR COMMAND ...", ".br", "\\fBs3backer\\fR [options] BUCKET[/PREFIX] MOUNTPOINT"]
    lines += [".SH DESCRIPTION", *_prose(INTRODUCTION), ".SH COMMANDS"]
    for name, command in found.items():
        lines += _entry(name, f"{_summary(command)}; see s3backer-{name}(1)")
    lines += [".SH OPTIONS OF THE ORIGINAL'S FORM"]
    for option in ORIGINAL.values():
        lines += _entry(f"--{option.flag}={option.metavar}" if option.convert else f"--{option.flag}", option.help)
    lines += [".SH SYSTEMD", *_prose(UNIT_TEXT), ".SH FILES"]
    for file, text in FILES:
        lines += _entry(file, text)
    others = [f".BR {_escape(name)} (1)," for name in names]
    lines += [".SH SEE ALSO", *others, ".BR mount.s3backer (8)"]
    return "\n".join(lines) + "\n"


def _helper_page() -> str:
    lines = [*_title("mount.s3backer", 8, "mount a volume as mount(8) and fstab(5) ask for it"), ".SH SYNOPSIS"]
    lines += ["\\fBmount.s3backer\\fR SPEC DIRECTORY [\\-sfnvrw] [\\-o OPTIONS]"]
    lines += [".SH DESCRIPTION", *_prose(FSTAB)]
    lines += [".SH SEE ALSO", ".BR s3backer (1),", ".BR fstab (5),", ".BR mount (8)"]
    return "\n".join(lines) + "\n"


# ── completions ──────────────────────────────────────────────────────────────────────────────────────────────────


def completions(marker: str) -> dict[str, str]:
    """Return the completions of bash, zsh and fish by shell; ``marker`` stands in a comment of each.

    They are complete in themselves: no key that is pressed in a shell starts a program.
    """
    options = {name: _options(command) for name, command in commands().items()}
    names = " ".join(COMMANDS)
    bash = "\n".join(
        f'        {name}) words="{" ".join(flag for flag, _ in found)}" ;;' for name, found in options.items()
    )
    zsh = "\n".join(
        f"        {name}) choices=({' '.join(_quote(f'{flag}:{text}') for flag, text in found)}) ;;"
        for name, found in options.items()
    )
    fish = [f"complete -c s3backer -n __fish_use_subcommand -a {_quote(names)}"]
    for name, found in options.items():
        for flag, text in found:
            kind = f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}"
            fish.append(f"complete -c s3backer -n '__fish_seen_subcommand_from {name}' {kind} -d {_quote(text)}")
    return {
        "bash": BASH.replace("@MARKER@", marker).replace("@NAMES@", names).replace("@OPTIONS@", bash),
        "zsh": ZSH.replace("@MARKER@", marker).replace("@NAMES@", names).replace("@OPTIONS@", zsh),
        "fish": FISH.replace("@MARKER@", marker).replace("@OPTIONS@", "\n".join(fish)),
    }


def _options(command: click.Command) -> list[tuple[str, str]]:
    context = click.Context(command)
    found = []
    for parameter in command.get_params(context):
        if isinstance(parameter, click.Option):
            found += [(flag, parameter.help or "") for flag in parameter.opts]
    return found


def _quote(text: str) -> str:
    """Quote for zsh, and for fish, which both take a backslash only outside of single quotes for a quote."""
    return "'" + text.replace("'", "'\\''") + "'"
