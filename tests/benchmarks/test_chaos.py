"""Three kills of a real study, as `benchmarks/chaos.py` counts them for `docs/reliability.md`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.integration
def test_nothing_is_lost_when_a_study_is_killed(repository: Path) -> None:
    words = [sys.executable, str(repository / "benchmarks" / "chaos.py"), "--kills", "3", "--seed", "1"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    assert '"kills": 3' in done.stdout
