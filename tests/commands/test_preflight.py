"""`hpo preflight`: what it shows, and how it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from hpo.cli import main
from hpo.commands.preflight import show
from hpo.engine.findings import Finding, State
from hpo.engine.preflight import Check, Report

GOOD = Finding(State.PASSED)


def shown(report: Report) -> str:
    console = Console(width=200, color_system=None)
    with console.capture() as capture:
        show(console, report)
    return capture.get()


def test_who_fails_what_and_what_to_do() -> None:
    late = Finding(State.FAILED, "+3.2 s", "its clock is 3.2 s ahead of the driver's, more than 1 s")
    little = Finding(State.WARNED, "little room", "a process may open 1024 files, fewer than 8192")
    lines = shown(
        Report(
            ("driver", "a (10.0.0.1)", "b (10.0.0.2)"),
            (
                Check("python", {"driver": GOOD, "a (10.0.0.1)": GOOD, "b (10.0.0.2)": GOOD}),
                Check("clock", {"a (10.0.0.1)": Finding(State.PASSED, "+1 ms"), "b (10.0.0.2)": late}),
                Check("limits", {"a (10.0.0.1)": little, "b (10.0.0.2)": little}),
            ),
        )
    ).splitlines()
    assert lines[0].split() == ["node", "python", "clock", "limits"]
    assert lines[1].split() == ["driver", "✓"]
    assert lines[2].split() == ["a", "(10.0.0.1)", "✓", "✓", "+1", "ms", "!", "little", "room"]
    assert lines[3].split() == ["b", "(10.0.0.2)", "✓", "✗", "+3.2", "s", "!", "little", "room"]
    assert "✗ clock: b (10.0.0.2): its clock is 3.2 s ahead of the driver's, more than 1 s" in lines
    assert "  let chrony or systemd-timesyncd set the clocks of all nodes" in lines
    assert "! limits: a (10.0.0.1), b (10.0.0.2): a process may open 1024 files, fewer than 8192" in lines
    assert lines[-1] == "not fit: b (10.0.0.2)"


def test_all_fit() -> None:
    text = shown(Report(("driver", "a"), (Check("python", {"driver": GOOD, "a": GOOD}),)))
    assert text.splitlines()[-1] == "1 node is fit to run it"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.py"], "error: nowhere.py: there is no such file"),
        (["FILE", "--results", "hdfs://x"], "error: hdfs://x: hdfs:// is no kind of storage"),
    ],
)
def test_what_cannot_be_is_said_before_anything_starts(words: list[str], message: str, repository: Path) -> None:
    file = str(repository / "tests" / "engine" / "toyexp.py")
    done = CliRunner().invoke(main, ["preflight", *(file if word == "FILE" else word for word in words)])
    assert done.exit_code != 0
    assert done.stderr.startswith(message)


@pytest.mark.integration
def test_this_machine(tmp_path: Path, repository: Path) -> None:
    file = tmp_path / "toy_study.py"
    file.write_text((repository / "tests" / "engine" / "toyexp.py").read_text())
    command = [sys.executable, "-c", "from hpo.cli import main; main()", "preflight", str(file)]
    command += ["--results", str(tmp_path / "r")]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "1 node is fit to run it"
    assert not (tmp_path / "r").exists()
