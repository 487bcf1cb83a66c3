import json
import os
import platform
import subprocess
import sys

import pytest

from hpo.errors import RunLocked, StoreError
from hpo.results.lock import RunLock, is_held

HOLD = """
import sys, pathlib
from hpo.results.lock import RunLock
lock = RunLock(pathlib.Path(sys.argv[1]), run_id="r1")
print("held", flush=True)
sys.stdin.read()
"""


def test_the_second_driver_is_told_of_the_first(tmp_path):
    path = tmp_path / "work" / "lock"
    lock = RunLock(path, run_id="r1")
    first = json.loads(path.read_text())
    assert first["pid"] == os.getpid()
    told = f"run r1: process {os.getpid()} on {platform.node()} drives it since 2.*\n.*`hpo stop r1`"
    with pytest.raises(RunLocked, match=told):
        RunLock(path, run_id="r1")
    lock.release()
    lock.release()
    RunLock(path, run_id="r1").release()


def test_a_lock_file_without_a_name_in_it_is_still_a_lock(tmp_path):
    lock = RunLock(tmp_path / "lock", run_id="r1")
    (tmp_path / "lock").write_text("")
    with pytest.raises(RunLocked, match="run r1: another process drives it"):
        RunLock(tmp_path / "lock", run_id="r1")
    lock.release()


def test_a_killed_drivers_lock_is_free(tmp_path):
    path = tmp_path / "lock"
    driver = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with driver:
        assert driver.stdout.readline() == "held\n"
        assert is_held(path)
        with pytest.raises(RunLocked, match=f"process {driver.pid} "):
            RunLock(path, run_id="r1")
        driver.kill()
    assert not is_held(path)
    RunLock(path, run_id="r1").release()


def test_asking_disturbs_nobody(tmp_path):
    path = tmp_path / "lock"
    assert not is_held(path)
    lock = RunLock(path, run_id="r1")
    assert is_held(path)
    assert is_held(path)
    lock.release()
    assert not is_held(path)


def test_a_lock_that_cannot_be_written_is_an_error_of_the_store(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        RunLock(tmp_path / "file" / "lock", run_id="r1")
