"""The text of a cluster file: read so that what YAML drops in silence is found."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

import yaml

from hpo.engine.cluster_file.finding import ClusterFileError, Finding, mapping, sequence

COMMANDS = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)
_MERGE = "tag:yaml.org,2002:merge"


def parse(text: str, *, where: str) -> list[Any]:
    """The documents of a YAML file, empty ones left out.

    Raises:
        ClusterFileError: It is not YAML.
    """
    try:
        return [document for document in yaml.safe_load_all(text) if document is not None]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}: line {mark.line + 1}" if mark else where
        problem = getattr(error, "problem", None) or str(error)
        raise ClusterFileError(f"it is not YAML ({problem})", where=place, remedy="correct that line") from error


def lost_in_reading(text: str) -> Iterator[Finding]:
    """What the parser drops without a word: a key that is given twice, a command that ends at ` # `."""
    for document in yaml.compose_all(text, Loader=yaml.SafeLoader):
        if document is not None:
            yield from _walk(document, text, "")


def _walk(node: yaml.Node, text: str, path: str) -> Iterator[Finding]:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name = str(key.value)
            here = f"{path}.{name}" if path else name
            if name in seen and key.tag != _MERGE:
                line = key.start_mark.line + 1
                yield Finding(here, f"it is given a second time in line {line}", "YAML keeps the last one: remove one")
            seen.add(name)
            yield from _walk(value, text, here)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _walk(value, text, f"{path}[{index}]")
    elif _is_command(path) and isinstance(node, yaml.ScalarNode) and node.style is None and _comment_after(node, text):
        line = node.end_mark.line + 1
        remedy = "quote the whole command, or put the comment on a line of its own"
        yield Finding(path, f"the command ends at the ` # ` in line {line}", remedy)


def _is_command(path: str) -> bool:
    return any(f".{path}".rpartition("[")[0].endswith(f".{name}") for name in COMMANDS)


def _comment_after(node: yaml.Node, text: str) -> bool:
    rest = text[node.end_mark.index :].split("\n", 1)[0]
    return rest[:1] in {" ", "\t"} and rest.lstrip().startswith("#")


def commands(config: Any, *names: str) -> list[str]:
    """The commands under these names, in their order."""
    return [each for name in names for each in sequence(mapping(config).get(name)) if isinstance(each, str)]


def unusable_commands(config: Any) -> Iterator[Finding]:
    """Commands that are no text, that a comment of the shell cuts, or whose quotes do not match."""
    for name in COMMANDS:
        for index, command in enumerate(sequence(mapping(config).get(name))):
            where = f"{name}[{index}]"
            if not isinstance(command, str):
                yield Finding(where, f"it is a {type(command).__name__}, not a command", "quote the whole command")
                continue
            try:
                words = _words(command)
            except ValueError as error:
                yield Finding(where, f"its quotes do not match ({error})", "close them: the shell would wait for more")
                continue
            if any(word.startswith("#") for word in words):
                remedy = "put the comment into YAML, on a line of its own above the command"
                yield Finding(where, "to the shell everything after ` # ` is a comment", remedy)


def _words(command: str) -> list[str]:
    reader = shlex.shlex(command, posix=True, punctuation_chars=False)
    reader.whitespace_split, reader.commenters = True, ""
    return list(reader)
