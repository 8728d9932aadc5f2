"""The subcommands of `controlnet-ext`, one file each. The file's name is the command's, its docstring is the help.

`arguments(parser, words)` declares the arguments; `words` is the command line, for flags that depend on it.
`run(options)` does the work and gives the exit code: 0 done, 1 something failed on the way, which it has said by `say`.
What it raises (ValueError, TypeError, OSError) was refused before any work. `--help` imports every file, so torch and
the like are imported in `run`.
"""

import sys


def print_stderr(message: object) -> None:
    """A line to stderr."""
    print(message, file=sys.stderr)
