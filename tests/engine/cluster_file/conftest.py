from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpo.engine.cluster_file import Report, check

Config = dict[str, Any]
CLUSTERS = Path(__file__).resolve().parents[3] / "clusters"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to start `ray up` in, and a home, with all that the files in clusters/ ship."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    token = tmp_path / "home/.ray/auth_token"
    token.parent.mkdir(parents=True)
    token.write_text("0" * 64)
    token.chmod(0o600)
    start = tmp_path / "start"
    (start / "dist").mkdir(parents=True)
    (start / "dist/hpo-0.1.0-py3-none-any.whl").touch()
    (start / "constraints.txt").touch()
    return start


@pytest.fixture
def checked(folder: Path) -> Callable[[str], Report]:
    """What is found in the text of a file."""

    def check_text(text: str, name: str = "cluster.yaml") -> Report:
        path = folder / name
        path.write_text(text)
        return check(path, folder=folder)

    return check_text


def loaded(name: str) -> Config:
    """A file of clusters/, anchors resolved into copies that can be changed one by one."""
    return copy_of(yaml.safe_load((CLUSTERS / name).read_text()))


def copy_of(value: Any) -> Any:
    """A deep copy in which nothing is shared."""
    if isinstance(value, dict):
        return {key: copy_of(each) for key, each in value.items()}
    return [copy_of(each) for each in value] if isinstance(value, list) else copy.copy(value)


def changed(config: Config, **values: Any) -> str:
    """The YAML of `config` with places set, or removed where the value is `...`; `__` leads to what is inside."""
    config = copy_of(config)
    for place, value in values.items():
        *above, last = place.split("__")
        inner: Any = config
        for name in above:
            inner = inner[int(name)] if isinstance(inner, list) else inner[name]
        last_key: Any = int(last) if isinstance(inner, list) else last
        if value is ...:
            del inner[last_key]
        else:
            inner[last_key] = value
    return yaml.safe_dump(config, sort_keys=False)


def errors(report: Report) -> list[str]:
    """What refuses the file."""
    return [str(finding) for finding in report.findings if finding.serious]


def notes(report: Report) -> list[str]:
    """What is only worth knowing."""
    return [str(finding) for finding in report.findings if not finding.serious]
