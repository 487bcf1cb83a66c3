"""What YAML and the shell drop in silence."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hpo.engine.cluster_file.source import COMMANDS, commands, lost_in_reading, parse, unusable_commands


def found(text: str) -> list[str]:
    return [str(each).split("\n")[0] for each in lost_in_reading(text)]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_comment_cuts_a_command(name: str) -> None:
    text = f"{name}:\n  - ray stop\n  - echo a # b && ray start --head\n"
    assert yaml.safe_load(text)[name][1] == "echo a"
    assert found(text) == [f"{name}[1]: the command ends at the ` # ` in line 3"]


def test_the_comment_may_cut_a_command_of_a_node_type() -> None:
    text = "available_node_types: {a: {worker_setup_commands: [\n  x # y\n]}}\n"
    assert found(text) == ["available_node_types.a.worker_setup_commands[0]: the command ends at the ` # ` in line 2"]


@pytest.mark.parametrize("text", ['- "echo a # b"', "- 'echo # b'", "# b\n- echo a", "- echo a#b", "- >-\n  echo # b"])
def test_other_signs_are_no_comments(text: str) -> None:
    assert found("setup_commands:\n" + text) == []


def test_comments_elsewhere_are_nobodys_business() -> None:
    assert found("max_workers: 4  # at most\nfile_mounts:\n  - a # b\n") == []


def test_a_key_that_is_given_twice() -> None:
    assert found("a:\n  b: 1\n  c: 2\n  b: 3\n") == ["a.b: it is given a second time in line 4"]
    assert found("x: &x {b: 1}\ny:\n  <<: *x\n  b: 2\n") == []


def test_unusable_commands() -> None:
    config = {
        "setup_commands": ["echo 'a # b'", "echo a # b; ray start", {"echo": 1}, 'echo "a'],
        "head_start_ray_commands": ["echo a#b"],
    }
    assert [str(each).split("\n")[0] for each in unusable_commands(config)] == [
        "setup_commands[1]: to the shell everything after ` # ` is a comment",
        "setup_commands[2]: it is a dict, not a command",
        "setup_commands[3]: its quotes do not match (No closing quotation)",
    ]


def test_commands_are_those_that_are_text() -> None:
    assert commands({"a": ["x", 1], "b": None, "c": ["y"]}, "a", "b", "c", "d") == ["x", "y"]


@given(st.lists(st.text(st.characters(codec="ascii", categories=("L", "N", "P", "Zs")), max_size=20), max_size=4))
def test_whatever_is_dumped_loses_nothing(texts: list[str]) -> None:
    """Law: YAML that a program wrote is read as it was meant, so that nothing is found in it."""
    text = yaml.safe_dump({"setup_commands": texts})
    assert parse(text, where="x") == [{"setup_commands": texts}]
    assert found(text) == []
