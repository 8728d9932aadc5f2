"""The command `controlnet-ext`; each of its subcommands is a file in commands/.

Exit codes: 0 done; 1 something failed during work; 2 refused before any work; 130 interrupted; 141 whoever reads stdout
has closed it, as `| head` does. Results go to files or stdout, messages and progress to stderr.
"""

from __future__ import annotations

import gc
import importlib
import os
import pkgutil
import sys
from argparse import SUPPRESS, Action, ArgumentParser, Namespace, RawDescriptionHelpFormatter
from types import ModuleType
from typing import NoReturn

from .. import __version__
from ..errors import suggest_names
from . import commands
from .common import print_stderr, resume_garbage_collection
from .deferred_imports import defer_imports

HELP_WIDTH = 120  # columns; argparse would ask the terminal, for which it imports shutil: 3 ms
FLAG_COLUMNS = 24  # columns of a flag and its value, before its help
PIPELINE_COMMANDS = ("demo", "generate", "serve")  # they load a pipeline, and then resume the garbage collection
READER_GONE = 141  # exit code, that of other commands, which SIGPIPE ends


class _CommandParser(ArgumentParser):
    """Raise ValueError with one line where argparse would print the usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")


class _HelpFormatter(RawDescriptionHelpFormatter):
    """Format the help with the default of each flag behind its text."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=FLAG_COLUMNS, width=HELP_WIDTH)

    def _get_help_string(self, action: Action) -> str | None:
        text = action.help
        has_default = action.default not in (None, SUPPRESS, []) and not isinstance(action.default, bool)
        return f"{text} (default: %(default)s)" if text and has_default and "(default" not in text else text


def main(argv: list[str] | None = None) -> int:
    """Run a command line, by default that of the process, and return the exit code."""
    words = sys.argv[1:] if argv is None else argv
    name = words[0] if words else "--help"
    if name in ("-h", "--help"):
        print(_format_overview(), file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    if name == "--version":
        print(f"controlnet-ext {__version__}")
        return 0
    try:
        command = _load_command(name)
        if name not in PIPELINE_COMMANDS:
            resume_garbage_collection()
        return command.run(_parse_options(command, f"controlnet-ext {name}", words[1:]))
    except BrokenPipeError:
        return READER_GONE
    except (ValueError, TypeError, OSError) as error:
        print_stderr(f"controlnet-ext: {error}")
        return 2
    except KeyboardInterrupt:
        print_stderr("controlnet-ext: interrupted")
        return 130


def program() -> NoReturn:
    """Run `main` and end the process at once with its exit code.

    Python's own shutdown takes 0.2 s, with torch seconds; after a kill -9 in that time the next run could not tell that
    the job was complete, because its record is deleted already.
    """
    for descriptor in range(3):  # closed ones, or the files that are opened next would get their numbers
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    gc.disable()  # imports make a million objects that stay; to look through them takes a fifth of the time
    if sys.argv[1:] and sys.argv[1] in PIPELINE_COMMANDS:
        defer_imports()
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  until the process ends
    try:
        code = main()
    except SystemExit as done:  # after --help
        code = int(done.code or 0)
    except BrokenPipeError:
        code = READER_GONE
    try:
        if sys.stdout is not None:  # None where it was closed
            sys.stdout.flush()
    except BrokenPipeError:
        code = READER_GONE
    except OSError as error:
        print_stderr(f"controlnet-ext: {error}")
        code = 1
    if sys.stderr is not None:
        sys.stderr.flush()
    os._exit(code)


def _build_parser(command: ModuleType, prog: str, argv: list[str]) -> ArgumentParser:
    description = (command.__doc__ or "").strip()
    parser = _CommandParser(prog, description=description, allow_abbrev=False, formatter_class=_HelpFormatter)
    command.arguments(parser, argv)
    return parser


def _list_commands() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(commands.__path__)]


def _load_command(name: str) -> ModuleType:
    if name not in _list_commands():
        raise ValueError(suggest_names(f"unknown command {name!r:.80}", name, _list_commands()))
    return importlib.import_module(f"{commands.__name__}.{name}")


def _parse_options(command: ModuleType, prog: str, argv: list[str]) -> Namespace:
    parser = _build_parser(command, prog, argv)
    words = argv[: argv.index("--")] if "--" in argv else argv
    for word in words:  # first: without one that was meant, argparse may only say that it is missing
        if word.startswith("--") and word.partition("=")[0] not in parser._option_string_actions:
            raise _make_unknown_argument_error(parser, word)
    options, rest = parser.parse_known_intermixed_args(argv)
    if rest:
        raise _make_unknown_argument_error(parser, rest[0])
    return options


def _make_unknown_argument_error(parser: ArgumentParser, word: str) -> ValueError:
    flags = [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]
    return ValueError(suggest_names(f"unknown argument {word!r:.80}", word.partition("=")[0], flags))


def _format_overview() -> str:
    names = _list_commands()
    width = max(map(len, names))
    lines = [f"  {name.ljust(width)}  {(_load_command(name).__doc__ or '').split(chr(10), 1)[0]}" for name in names]
    return "\n".join(
        [
            "usage: controlnet-ext COMMAND ...",
            "",
            "Control maps, ControlNets and exact guidance for Stable Diffusion.",
            "",
            *lines,
            "",
            "controlnet-ext COMMAND --help lists the flags of a command; controlnet-ext --version prints the version.",
        ]
    )
