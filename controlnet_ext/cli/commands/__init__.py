"""The subcommands of `controlnet-ext`, one file each, which is called like the command.

The module docstring is the description in the help, its first line the summary in the overview. `arguments(parser,
argv)` declares the flags, each with its help; `argv` is the command line, for flags that depend on it. `run(options)`
does the work and returns the exit code: 0 done, 1 something failed during work, which it has printed. ValueError,
TypeError and OSError from `run` mean that the command was refused before any work. `controlnet-ext --help` imports
every file, so torch and its like are imported in `run`.
"""
