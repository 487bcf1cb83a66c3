"""`hpo cluster`: what people see of a checked file, and of a prepared account."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from hpo.cli import main


def typed(*words: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(main, ["cluster", *words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: Path) -> Path:
    """A folder to start in, with a token at home and clusters/gpu.yaml, but no wheel."""
    token = tmp_path / "home/.ray/auth_token"
    token.parent.mkdir(parents=True)
    token.touch(0o600)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "constraints.txt").touch()
    (tmp_path / "dist").mkdir()
    (tmp_path / "gpu.yaml").write_text((repository / "clusters/gpu.yaml").read_text())
    return tmp_path


def test_a_refused_file_says_what_to_do_and_what_it_would_cost(start: Path) -> None:
    code, out, err = typed("check", "gpu.yaml")
    assert code == 2
    assert "error: file_mounts.~/hpo/dist: no wheel of hpo is in it\n  build it: pip wheel" in err
    assert "gpu.yaml: 1 error in this Ray cluster on aws" in err
    assert "costs: $0.22 an hour while nothing runs, at most $18.69" in out


def test_an_accepted_file(start: Path) -> None:
    (start / "dist/hpo-0.1.0-py3-none-any.whl").touch()
    code, out, err = typed("check", "gpu.yaml")
    assert (code, err) == (0, "")
    assert out.endswith("gpu.yaml: a Ray cluster on aws, nothing wrong was found\n")


def test_an_unknown_machine_is_a_note_and_has_no_price(start: Path) -> None:
    (start / "dist/hpo-0.1.0-py3-none-any.whl").touch()
    (start / "gpu.yaml").write_text((start / "gpu.yaml").read_text().replace("m7i.xlarge", "m99i.xlarge"))
    code, out, _ = typed("check", "gpu.yaml")
    assert code == 0
    assert "note: available_node_types.head.cpu.node_config.InstanceType: m99i.xlarge is not in the table" in out
    assert "costs: not known" in out


def test_what_is_no_cluster_file(start: Path) -> None:
    code, _, err = typed("check", "none.yaml")
    assert code == 2
    assert "error: none.yaml: it cannot be read" in err


def test_prepare_refuses_the_whole_world_before_it_asks_a_cloud(start: Path) -> None:
    code, _, err = typed("prepare", "gpu.yaml", "--ssh-from", "0.0.0.0/0", "--bucket", "b")
    assert code == 2
    assert "name a network of at most /8" in err


def test_prepare_makes_what_the_file_names(start: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moto = pytest.importorskip("moto")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with moto.mock_aws():
        code, out, err = typed("prepare", "gpu.yaml", "--ssh-from", "203.0.113.0/24", "--bucket", "results")
    assert (code, err) == (0, "")
    assert [line.split(":")[0] for line in out.splitlines()] == [
        "security group hpo-gpu",
        "instance profile hpo-ray-node",
        "bucket results",
    ]


def test_help_imports_neither_ray_nor_boto3() -> None:
    code = "import sys, hpo.commands.cluster as c; c.cluster(['--help'], standalone_mode=False); "
    code += "assert not {'ray', 'boto3', 'yaml'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)
