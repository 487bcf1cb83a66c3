"""Resources and code that is shipped; Ray itself is started in the integration tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpo import PerTrial
from hpo.engine.cluster import Resources, resources_on, shipped
from hpo.errors import ExperimentError


@pytest.mark.parametrize(
    ("resources", "totals", "slots"),
    [
        (Resources(cpus=1, gpus=0), {"CPU": 2}, 2),
        (Resources(cpus=0.5, gpus=0), {"CPU": 2}, 4),
        (Resources(cpus=1, gpus=1), {"CPU": 16, "GPU": 4}, 4),
        (Resources(cpus=1, gpus=2), {"CPU": 16, "GPU": 5}, 2),
        (Resources(cpus=1, gpus=0.25), {"CPU": 16, "GPU": 1}, 4),
        (Resources(cpus=1, gpus=0.4), {"CPU": 16, "GPU": 3}, 6),
        (Resources(cpus=4, gpus=1), {"CPU": 4, "GPU": 4}, 1),
        (Resources(cpus=1, gpus=1), {"CPU": 4}, 0),
    ],
)
def test_slots_of_a_node(resources: Resources, totals: dict[str, float], slots: int) -> None:
    assert resources.slots([totals]) == slots


@pytest.mark.parametrize("number", range(1, 33))
def test_so_many_share_a_gpu(number: int) -> None:
    resources = Resources(cpus=0.01, gpus=1).sharing(number)
    assert resources.trials_per_gpu == number
    assert round(resources.gpus * 10_000) * number <= 10_000  # as Ray counts
    assert resources.slots([{"CPU": 1, "GPU": 2}]) == 2 * number
    assert resources.device == "cuda"


def test_shares_are_rounded_down_as_ray_counts() -> None:
    resources = resources_on(PerTrial(gpus=1 / 6, cpus=0.5), [{"CPU": 16, "GPU": 2}])
    assert resources == Resources(cpus=0.5, gpus=pytest.approx(0.1666))
    assert resources.slots([{"CPU": 16, "GPU": 2}]) == 12
    assert Resources(cpus=1, gpus=0).trials_per_gpu == 0


@pytest.mark.parametrize(
    ("resources", "text"),
    [
        (Resources(cpus=1, gpus=0), "1 CPU core"),
        (Resources(cpus=0.5, gpus=0.25), "0.5 CPU core and 0.25 of a GPU"),
        (Resources(cpus=2, gpus=1), "2 CPU cores and 1 GPU"),
        (Resources(cpus=2, gpus=2), "2 CPU cores and 2 GPUs"),
    ],
)
def test_resources_in_words(resources: Resources, text: str) -> None:
    assert str(resources) == text


def test_a_trial_is_not_spread_over_nodes() -> None:
    assert Resources(cpus=16, gpus=0).slots([{"CPU": 8}] * 4) == 0
    assert Resources(cpus=3, gpus=0).slots([{"CPU": 8}, {"CPU": 4}]) == 3


def test_a_core_instead_where_there_is_no_gpu() -> None:
    resources = resources_on(PerTrial(gpus=1, cpus=1), [{"CPU": 2}])
    assert (resources.device, resources.gpus, resources.num_threads) == ("cpu", 0.0, 1)
    assert resources_on(PerTrial(gpus=1, cpus=2), [{"CPU": 2, "GPU": 1}]).device == "cuda"


@pytest.mark.parametrize(
    ("per_trial", "message"),
    [
        (PerTrial(gpus=4), r"per_trial\.gpus: 4 is more than the 1 that there are.*--set per_trial\.gpus=1"),
        (PerTrial(cpus=64), r"per_trial\.cpus: 64 is more than the 2"),
        (PerTrial(gpus=0, workers=3), r"per_trial\.workers: 3 do not fit: there is room for 2 .*per_trial\.workers=2"),
        (PerTrial(gpus=0.5, cpus=1, workers=3), r"per_trial\.workers: 3 do not fit: there is room for 2"),
    ],
)
def test_more_than_there_is(per_trial: PerTrial, message: str) -> None:
    with pytest.raises(ExperimentError, match=f"(?s){message}"):
        resources_on(per_trial, [{"CPU": 2, "GPU": 1}])


def test_cores_and_gpus_on_different_nodes_are_no_place() -> None:
    with pytest.raises(
        ExperimentError, match=r"(?s)per_trial\.workers: 1 do not fit.*no node has the cores and the GPUs"
    ):
        resources_on(PerTrial(gpus=1, cpus=4), [{"CPU": 8}, {"CPU": 1, "GPU": 1}])


def test_no_nodes_and_none_to_come() -> None:
    with pytest.raises(ExperimentError, match=r"(?s)per_trial\.cpus: 1 is more than the 0 .*HPO_MAY_START"):
        resources_on(PerTrial(gpus=1), [])


def test_workers_fill_places_together() -> None:
    resources = resources_on(PerTrial(gpus=0, workers=2), [{"CPU": 1}] * 5)
    assert resources.slots([{"CPU": 1}] * 5) == 2
    assert resources.bundles() == [{}, {"CPU": 1}, {"CPU": 1}]
    assert str(resources) == "2 workers with 1 CPU core each"
    assert resources_on(PerTrial(gpus=1, workers=2), [{"CPU": 2, "GPU": 2}]).gpus_in_all == 2


def test_code_is_shipped_and_nothing_else(tmp_path: Path) -> None:
    for name in (
        "x.py",
        "beside.py",
        "parts/inner.py",
        "data/d.py",
        ".git/g.py",
        "env/pyvenv.cfg",
        "env/e.py",
        "n.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("A = 1\n")
    with shipped(tmp_path / "x.py") as folder:
        found = sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())
    assert found == ["beside.py", "data/d.py", "parts/inner.py", "x.py"]
    assert not Path(folder).exists()


def test_a_file_beside_thousands_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpo.engine.cluster.MOST_FILES", 3)
    for number in range(4):
        (tmp_path / f"x{number}.py").write_text("")
    with pytest.raises(ExperimentError, match=r"(?s)x0\.py: there are more than 3 Python files.*folder of its own"):
        shipped(tmp_path / "x0.py").__enter__()
