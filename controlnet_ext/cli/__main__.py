"""`python -m controlnet_ext.cli`: the command, for environments without the installed script."""

from . import program

program()
