"""The help of every command: made from its flags, each with a help text, defaults from the code."""

import re
from argparse import SUPPRESS
from importlib.metadata import version

import pytest

import controlnet_ext
from controlnet_ext import cli
from controlnet_ext.generation.options import UNIT_KEYS
from controlnet_ext.sdwebui.fields import RequestLimits
from controlnet_ext.training.config import MAX_LAYOUT_FACTOR, TrainingSchedule

COMMANDS = cli._list_commands()


def help_of(capsys, *words):
    with pytest.raises(SystemExit) as done:
        cli.main([*words, "--help"])
    assert done.value.code == 0
    out, error = capsys.readouterr()
    assert error == ""
    return out


@pytest.mark.parametrize("name", COMMANDS)
def test_each_flag_of_a_command_has_a_help(name, capsys):
    out = help_of(capsys, name)
    for action in cli._build_parser(cli._load_command(name), "", [])._actions:
        assert action.help, action.dest
        if action.help is not SUPPRESS:
            word = action.option_strings[-1] if action.option_strings else action.metavar
            assert word in out
    assert (out.startswith(f"usage: controlnet-ext {name} ") and "Exit code 0" in out) or name == "preprocessors"
    assert max(map(len, out.splitlines())) <= 120


@pytest.mark.parametrize("flag", ["--images", "--pictures"])
def test_the_old_name_of_a_flag_is_read_but_not_listed(flag, capsys):
    parser = cli._build_parser(cli._load_command("serve"), "", [])
    assert parser.parse_args([flag, "7"]).images == 7 and parser.parse_args([]).images == RequestLimits.max_images
    assert (flag in help_of(capsys, "serve")) == (flag == "--images")


def test_the_overview_lists_all_commands_with_a_sentence(capsys):
    assert cli.main(["--help"]) == 0
    out, error = capsys.readouterr()
    assert re.findall(r"^  (\w+) +[A-Z].*\.$", out, re.M) == COMMANDS and error == ""
    assert cli.main([]) == 2
    assert capsys.readouterr() == ("", out)


def test_the_version_is_that_of_the_package(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"controlnet-ext {controlnet_ext.__version__}\n"
    assert re.fullmatch(r"\d+\.\d+\.\d+", controlnet_ext.__version__)
    assert version("controlnet-ext") == controlnet_ext.__version__


def test_the_parameters_of_named_preprocessors_are_listed(capsys):
    out = help_of(capsys, "preprocess", "canny")
    assert "parameters of canny" in out
    assert re.search(r"--low VALUE +a whole number 0..255 \(default: 100\)", out)
    assert re.search(r"--resolution VALUE +short side", out) and "--canny.low" not in out
    assert "--low" not in help_of(capsys, "preprocess")


def test_defaults_in_the_help_are_those_of_the_code(capsys):
    out = " ".join(help_of(capsys, "train").split())
    assert f"up to {MAX_LAYOUT_FACTOR:g} times more" in out
    assert f"(default: {TrainingSchedule.evaluation_interval})" in out


def test_the_help_of_generate_names_all_keys_of_a_unit(capsys):
    out = help_of(capsys, "generate")
    assert all(f"  {key}=" in out for key in UNIT_KEYS)
