"""Batch scripts of Slurm."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from hpo.engine.cluster_file import Report
from tests.engine.cluster_file.conftest import CLUSTERS, errors, notes

Checked = Callable[..., Report]
TEXT = (CLUSTERS / "slurm.sbatch").read_text()


def test_slurm_sbatch_is_accepted(checked: Checked) -> None:
    report = checked(TEXT)
    assert (errors(report), notes(report), report.kind, report.costs) == ([], [], "Slurm batch script", None)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("#SBATCH --time=12:00:00\n", "", "#SBATCH --time: not given: the partition's limit ends the study"),
        (
            "--ntasks-per-node=1",
            "--ntasks-per-node=4",
            "#SBATCH --ntasks-per-node: 4: Ray is to be started once a node",
        ),
        ("#SBATCH --exclusive\n", "", "`ray stop` at the end would end any other Ray"),
        ("RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled", "Ray starts without token authentication"),
        ('"$SLURM_JOB_NUM_NODES"', "3", "--min-nodes: 3, but 2 nodes are asked for"),
        ('"$SLURM_GPUS_ON_NODE"', "8", "--num-gpus: 8 used, but 4 a node are asked for"),
        ("--gpus-per-node=4", "--gres=gpu:a100:2\n#SBATCH --comment=x", None),
        ("--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0", r"0\.0\.0\.0 opens the dashboard to others"),
        ("  -- python", "  python", "ray symmetric-run: no -- before the command"),
        ("srun --kill-on-bad-exit=1 ray", "echo", "no srun starts `ray symmetric-run`"),
        ("set -euo pipefail\n", "set -e\n#SBATCH --mem=0\n", "#SBATCH --mem=0: it stands below the first command"),
    ],
)
def test_says(checked: Checked, old: str, new: str, says: str | None) -> None:
    assert old in TEXT
    found = "\n".join(errors(checked(TEXT.replace(old, new))))
    assert re.search(says, found) if says else not found, found


@pytest.mark.parametrize("asked", ["--gpus-per-task=4", "--gres=gpu:4", "--gres gpu:h100:4", "--gres=gpu"])
def test_gpus_are_asked_for_in_three_ways(checked: Checked, asked: str) -> None:
    used = "1" if asked == "--gres=gpu" else "4"
    text = TEXT.replace("--gpus-per-node=4", asked).replace('"$SLURM_GPUS_ON_NODE"', used)
    assert errors(checked(text)) == []
    other = text.replace(f"--num-gpus={used}", "--num-gpus=7")
    assert re.search("--num-gpus: 7 used", "\n".join(errors(checked(other))))


def test_no_gpus_are_worth_a_note(checked: Checked) -> None:
    report = checked(TEXT.replace("#SBATCH --gpus-per-node=4\n", ""))
    assert errors(report) == []
    assert re.search("--gpus-per-node: not given: trials would get CPU cores only", notes(report)[0])


def test_short_options_are_understood(checked: Checked) -> None:
    text = TEXT.replace("--nodes=2", "-N 2").replace("--time=12:00:00", "-t 12:00:00")
    assert errors(checked(text)) == []
