"""One command, `controlnet-ext`; each of its subcommands is a file in commands/.

Exit codes: 0 done; 1 something failed during work; 2 refused before any work; 130 interrupted. Results go to files or
stdout, words and progress to stderr.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from argparse import ArgumentParser, HelpFormatter, Namespace
from types import ModuleType
from typing import NoReturn

from ..errors import suggest_names
from . import commands


class _CommandParser(ArgumentParser):
    """Says what is wrong in one line, and prints the command's docstring as its help."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")

    def format_help(self) -> str:
        return f"{self.description}\n"


def _make_formatter(prog: str) -> HelpFormatter:
    return HelpFormatter(prog, width=120)  # not asked of the terminal, for which argparse imports shutil: 3 ms


def main(argv: list[str] | None = None) -> int:
    """Run a command line, by default the process's, and give the exit code."""
    words = sys.argv[1:] if argv is None else argv
    name = words[0] if words else "--help"
    if name in ("-h", "--help"):
        print(_format_overview(), file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    try:
        command = _load_command(name)
        return command.run(_parse_options(command, f"controlnet-ext {name}", words[1:]))
    except (ValueError, TypeError, OSError) as error:
        commands.print_stderr(f"controlnet-ext: {error}")
        return 2
    except KeyboardInterrupt:
        commands.print_stderr("controlnet-ext: interrupted")
        return 130


def program() -> NoReturn:
    """`main` as a process, which ends with it at once: to take down what is loaded lasts 0.2 s, with torch seconds, and
    after a kill -9 in that time a job whose record is cleared away would not be known."""
    code = main()
    try:
        if sys.stdout is not None:  # as where it was closed
            sys.stdout.flush()
    except OSError as error:
        commands.print_stderr(f"controlnet-ext: {error}")
        code = 1
    if sys.stderr is not None:
        sys.stderr.flush()
    os._exit(code)


def _list_commands() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(commands.__path__)]


def _load_command(name: str) -> ModuleType:
    if name not in _list_commands():
        raise ValueError(suggest_names(f"unknown command {name!r:.80}", name, _list_commands()))
    return importlib.import_module(f"{commands.__name__}.{name}")


def _parse_options(command: ModuleType, prog: str, argv: list[str]) -> Namespace:
    parser = _CommandParser(
        prog, description=(command.__doc__ or "").strip(), allow_abbrev=False, formatter_class=_make_formatter
    )
    command.arguments(parser, argv)
    options, rest = parser.parse_known_intermixed_args(argv)
    if rest:
        flags = [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]
        raise ValueError(suggest_names(f"unknown argument {rest[0]!r:.80}", rest[0].split("=")[0], flags))
    return options


def _format_overview() -> str:
    usages = [(_load_command(name).__doc__ or "").strip().split("\n", 1)[0] for name in _list_commands()]
    return "\n".join(["Maps and guidance for Stable Diffusion.", "", *usages, "", "--help after a command says more."])
