"""Checkpoint files of tests that have no store: the journal calls each by its whole path."""

from __future__ import annotations

from pathlib import Path

from hpo.engine.checkpoint_files import LocalFiles
from hpo.results import RunPaths

LOOSE_FILES = LocalFiles(RunPaths(Path("nowhere"), "toy", "run"))
