"""`python -m controlnet_ext.cli`: the command, where no script is installed."""

from . import program

program()
