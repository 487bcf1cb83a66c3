import re
from pathlib import Path

import pytest

from hpo.errors import StoreError
from hpo.results.layout import Place, RunPaths, made_by, new_run_id, runs_under, write_atomically


def test_the_names_are_those_that_the_documentation_gives(tmp_path):
    paths = RunPaths(tmp_path, "e", "r")
    shown = [
        (paths.run_file, "runs/experiment=e/run=r/run.parquet"),
        (paths.trials_file, "trials/experiment=e/run=r/trials.parquet"),
        (paths.reports_part(1), "reports/experiment=e/run=r/part-000001.parquet"),
        (paths.events_part(12), "events/experiment=e/run=r/part-000012.parquet"),
        (paths.experiment_json, "work/e/r/experiment.json"),
        (paths.segment(3), "work/e/r/journal/segment-000003.arrow"),
        (paths.lock, "work/e/r/lock"),
        (paths.stop_request, "work/e/r/stop"),
        (paths.checkpoint(5, 1, 3), "work/e/r/checkpoints/trial-00005/attempt-01-step-0003.pt"),
        (paths.log(5), "work/e/r/logs/trial-00005.log"),
        (paths.tensorboard, "work/e/r/tensorboard"),
    ]
    for path, name in shown:
        assert path.relative_to(tmp_path).as_posix() == name


@pytest.mark.parametrize("name", ["", "a/b", "..", "x=1", "a b"])
def test_a_name_that_is_no_folder_name_is_refused(tmp_path, name):
    with pytest.raises(StoreError, match=r"cannot be the name of a folder\n.*letters, digits"):
        RunPaths(tmp_path, name, "r")


def test_numbers_come_back_in_order_and_without_strangers(tmp_path):
    paths = RunPaths(tmp_path, "e", "r")
    assert paths.segments() == paths.sealed() == []
    for number in (10, 9, 1_000_000):
        write_atomically(paths.segment(number), b"")
        write_atomically(paths.events_part(number), b"")
    write_atomically(paths.journal_dir / "notes.txt", "mine")
    assert paths.segments() == paths.sealed() == [9, 10, 1_000_000]


def test_runs_are_found_by_their_rows(tmp_path):
    paths = RunPaths(tmp_path, "e", "r")
    assert list(runs_under(tmp_path)) == []
    write_atomically(paths.run_file, b"")
    assert list(runs_under(tmp_path)) == [paths]


def test_run_ids_sort_by_time_and_differ():
    ids = {new_run_id() for _ in range(20)}
    assert len(ids) > 1
    assert all(re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{4}", run_id) for run_id in ids)


def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    write_atomically(path, b"old")
    write_atomically(path, "nöw")
    assert path.read_text(encoding="utf-8") == "nöw"
    assert [file.name for file in path.parent.iterdir()] == ["file"]


def test_what_cannot_be_written_leaves_the_old(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(StoreError, match=r"file/below: cannot be written: .*\n  make room or mend the permissions"):
        write_atomically(tmp_path / "file" / "below", "new")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreError, match=r"folder: cannot be written: Is a directory"):
        write_atomically(tmp_path / "folder", "new")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "folder"]


def test_the_journal_calls_files_by_their_names_in_the_run(tmp_path):
    paths = RunPaths(tmp_path, "e", "r")
    name = "checkpoints/trial-00005/attempt-01-step-0003.pt"
    for where in (paths, RunPaths(tmp_path, "e", "r", "s3://b/p?scheme=http"), RunPaths(tmp_path / "moved", "e", "r")):
        target = where.target(where.checkpoint(5, 1, 3))
        assert where.recorded(target) == name
        assert where.located(name) == target
        assert paths.located(target) == str(paths.checkpoint(5, 1, 3))  # also after the store was moved
    assert RunPaths(tmp_path, "e", "r", "s3://b/p?scheme=http").located(name) == f"s3://b/p/work/e/r/{name}?scheme=http"


def test_files_of_other_runs_are_called_by_their_whole_names(tmp_path):
    paths = RunPaths(tmp_path, "e", "r")
    for other in ("/elsewhere/work/e/r2/checkpoints/x.pt", "s3://b/p/work/e2/r/checkpoints/x.pt?scheme=http"):
        assert paths.recorded(other) == paths.located(other) == other


def test_each_attempt_has_a_log_in_a_bucket_and_each_trial_one_in_a_folder(tmp_path):
    here, bucket = RunPaths(tmp_path, "e", "r"), RunPaths(tmp_path, "e", "r", "s3://b/p")
    assert here.log(5, attempt=2) == here.log(5)
    assert bucket.log(5, attempt=2).name == "trial-00005.attempt-02.log"
    assert bucket.log(5, 1, attempt=2).name == "trial-00005.attempt-02-rank-1.log"
    for path in (bucket.log(5, attempt=2), bucket.log(5, 1, attempt=2), bucket.log(5, attempt=1), bucket.log(6)):
        write_atomically(path, "text")
    assert bucket.logs(5) == [bucket.log(5, attempt=1), bucket.log(5, attempt=2), bucket.log(5, 1, attempt=2)]


def test_a_bucket_has_a_working_folder_of_its_own(tmp_path):
    assert Place.of(tmp_path / "results") == Place(tmp_path / "results")
    assert Place.of("~/results") == Place(Path.home() / "results")
    one, two = (Place.of(f"s3://b/{name}/", cache_dir=tmp_path) for name in ("p", "q"))
    assert one.url == str(one) == "s3://b/p"
    assert one.root.parent == two.root.parent == tmp_path / "stores"
    assert one.root != two.root
    assert Place.of("s3://b/p", cache_dir=tmp_path) == one
    assert one.run("e", "r") == RunPaths(one.root, "e", "r", "s3://b/p")


def test_a_row_tells_whose_it_is():
    paths = RunPaths(Path(), "e", "r")
    assert made_by(paths.name(paths.run_file)) == ("e", "r")
    assert made_by("runs/odd") is None
