"""The wording of refusals, and that no other file writes its own copy of it."""

from pathlib import Path

import numpy as np
import pytest

from controlnet_ext.errors import (
    PEER_NAMES,
    check_choice,
    closest_names,
    error_prefix,
    escape_unprintable,
    one_line,
    quote_value,
    suggest_names,
)

ROOT = Path(__file__).parents[1]


def test_an_errors_text_becomes_one_line_of_limited_length():
    assert one_line(ValueError("a\n  b\tc")) == "a b c"
    assert one_line(ValueError("abcdef"), 3) == "abc"
    assert one_line("a\nb") == "a b"
    assert one_line(RuntimeError()) == "RuntimeError"


def test_text_from_outside_cannot_command_a_terminal():
    assert escape_unprintable("a\x1b[2J\nb\u202e\udc80 ž") == r"a\x1b[2J\nb\u202e\udc80 ž"
    assert one_line("a\x1b[2J") == r"a\x1b[2J"
    assert suggest_names("unknown \x1b[1m", "x\n", ["y\x07"]) == r"unknown \x1b[1m, the nearest are: y\x07"
    with pytest.raises(ValueError, match=r"^unit \\n2: a\\x07$"), error_prefix("unit \n2"):
        raise ValueError("a\x07")


def test_foreign_values_are_quoted_on_one_short_line():
    assert quote_value("a\nb") == r"'a\nb'"
    assert quote_value(np.zeros((2, 2))) == "array([[0., 0.], [0., 0.]])"
    assert quote_value("x" * 99, 10) == "'xxxxxxxx…"


@pytest.mark.parametrize("kind", [ValueError, TypeError, FileNotFoundError])
def test_a_prefix_keeps_the_type_of_an_error_about_input(kind):
    with pytest.raises(kind, match=r"^unit 2: too large$"), error_prefix("unit 2"):
        raise kind("too large")


def test_a_prefix_leaves_other_errors_alone():
    with pytest.raises(RuntimeError, match=r"^out of memory$"), error_prefix("unit 2"):
        raise RuntimeError("out of memory")


def test_a_value_that_is_no_choice_is_refused_with_the_choices():
    check_choice("mode", "prompt", ("balanced", "prompt"))
    with pytest.raises(ValueError, match=r"^mode 'x' is none of: balanced, prompt$"):
        check_choice("mode", "x", ("balanced", "prompt"))


def test_the_names_that_contain_the_word_come_first_then_those_most_like_it():
    assert closest_names("depth", ["canny", "dept", "depth_midas", "xdepth"]) == "xdepth, depth_midas, dept"
    assert suggest_names("unknown 'cany'", "cany", ["canny"]) == "unknown 'cany', the nearest are: canny"


@pytest.mark.parametrize(
    ("given", "meant"),
    [("--lr", "--rate"), ("Learning Rate", "--rate"), ("--num-inference_steps", "--steps"), ("--STEPS", "--steps")],
)
def test_the_name_that_a_peer_gives_a_thing_is_answered_with_the_one_it_has_here(given, meant):
    assert suggest_names("no", given, ["--rate", "--steps"]) == f"no; it is called {meant} here"
    assert suggest_names("no", given, ["--other"]) == "no, the nearest are: --other"


def test_names_of_peers_are_written_in_one_form_and_mean_something_else():
    for name, meant in PEER_NAMES.items():
        assert name == name.casefold().replace("-", "_").replace(" ", "_") and name not in meant
    assert list(PEER_NAMES) == sorted(PEER_NAMES)


def test_no_other_file_words_refusals_by_itself():
    own = "controlnet_ext/errors.py"
    copies = ('" ".join(str(', "is none of: {", "the nearest are: {")
    files = (path for room in ("controlnet_ext", "preprocessors") for path in (ROOT / room).rglob("*.py"))
    wrong = [path for path in files if any(copy in path.read_text() for copy in copies) and not path.match(own)]
    assert wrong == []
