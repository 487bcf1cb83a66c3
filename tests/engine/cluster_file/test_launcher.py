"""Files of `ray up` on any provider, and on machines with SSH."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpo.engine.cluster_file import ClusterFileError, Report, check
from tests.engine.cluster_file.conftest import CLUSTERS, Config, changed, errors, loaded, notes

Checked = Callable[..., Report]
MINE: dict[str, Any] = {
    "provider__head_ip": "10.0.0.10",
    "provider__worker_ips": ["10.0.0.11", "node-2"],
    "auth__ssh_private_key": ...,
}


@pytest.fixture
def mine() -> Config:
    """clusters/local.yaml with addresses of somebody's machines."""
    import yaml

    return dict(yaml.safe_load(changed(loaded("local.yaml"), **MINE)))


def test_local_yaml_filled_in_is_accepted(checked: Checked, mine: Config) -> None:
    report = checked(changed(mine))
    assert (errors(report), notes(report), report.costs, report.refused) == ([], [], None, False)
    assert report.kind == "Ray cluster on local"


def test_local_yaml_as_it_is_asks_for_addresses_and_a_key(checked: Checked) -> None:
    report = checked(changed(loaded("local.yaml")))
    assert [line.split(": ")[0] for line in errors(report)] == ["provider", "auth.ssh_private_key"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"max_worker": 3}, r"file\.max_worker: this name is read by nobody\n  did you mean max_workers\?"),
        ({"upscaling_speed": "fast"}, r"upscaling_speed: Ray's schema refuses it: 'fast' is not of type 'number'"),
        ({"head_node": {"x": 1}}, r"file\.head_node: this name is read by nobody"),
        (
            {"available_node_types": {"a": {"node_config": {}, "resources": {}}}},
            "file: Ray refuses it: .*not supported for on-premise",
        ),
        ({"provider__head_ips": "10.0.0.1"}, r"provider\.head_ips: .* nobody\n  did you mean head_ip\?"),
        ({"provider__head_ip": "203.0.113.7"}, r"provider: 203\.0\.113\.7: addresses of examples"),
        ({"provider__worker_ips": ["10.0.0.10"]}, "worker_ips: a machine is named twice"),
        ({"provider__worker_ips": ["10.0.0.11", "10.0.0.11"]}, "worker_ips: a machine is named twice"),
        ({"provider__worker_ips": []}, r"provider\.worker_ips: not given"),
        ({"auth": {}}, r"auth\.ssh_user: not given"),
        ({"auth__ssh_private_key": "~/.ssh/nobody"}, r"auth\.ssh_private_key: there is no ~/\.ssh/nobody"),
        ({"file_mounts__~/code": "no/such"}, r"file_mounts\.~/code: there is no no/such\n  `ray up` counts relative"),
        ({"setup_commands": []}, "setup_commands: no command pins the packages"),
        ({"setup_commands": ["pip install ray-nightly -c constraints.txt"]}, "it installs a nightly wheel: pip"),
        ({"worker_start_ray_commands": ["ray start --address=$RAY_HEAD_IP:6379"]}, None),
        ({"worker_start_ray_commands": ["ray start"]}, r"`ray start` lacks --address=\$RAY_HEAD_IP"),
        ({"worker_start_ray_commands": ["ray stop"]}, "worker_start_ray_commands: no command starts Ray"),
        ({"head_start_ray_commands": ["ray start --head"]}, "lacks --autoscaling-config"),
        ({"head_start_ray_commands": ["ray start --head"]}, "the second autoscaler counts the head as a worker"),
        ({"head_start_ray_commands": ["ray start --head"]}, "the dashboard's address is not named"),
        (
            {"head_start_ray_commands": ["ray start --head --dashboard-host=0.0.0.0"]},
            r"the dashboard's address is 0\.0\.0\.0\n  write --dashboard-host=127\.0\.0\.1",
        ),
    ],
)
def test_says(checked: Checked, mine: Config, change: dict[str, Any], says: str | None) -> None:
    found = "\n".join(errors(checked(changed(mine, **change))))
    assert re.search(says, found) if says else not found, found


def test_a_cluster_without_token_authentication_is_refused(checked: Checked, mine: Config) -> None:
    text = changed(mine).replace("RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled")
    assert [line.split("\n")[0] for line in errors(checked(text))] == [
        "head_start_ray_commands: Ray starts without token authentication",
        "worker_start_ray_commands: Ray starts without token authentication",
    ]


def test_a_slow_notice_of_dead_nodes_is_noted(checked: Checked, mine: Config) -> None:
    text = changed(mine).replace("RAY_health_check", "RAY_some_check")
    [note] = notes(checked(text))
    assert re.search("dead node is noticed after about 66 s", note)


def test_a_token_that_others_may_read(checked: Checked, mine: Config) -> None:
    (Path.home() / ".ray/auth_token").chmod(0o644)
    assert errors(checked(changed(mine))) == [
        "file_mounts.~/.ray/auth_token: ~/.ray/auth_token has mode 0644: others may read it\n"
        "  chmod 600 ~/.ray/auth_token"
    ]


def test_a_token_that_is_missing(checked: Checked, mine: Config) -> None:
    (Path.home() / ".ray/auth_token").unlink()
    [error] = errors(checked(changed(mine)))
    assert re.search(r"there is no ~/\.ray/auth_token\n  make one: .*ray get-auth-token --generate", error)


def test_a_token_that_is_not_brought_along(checked: Checked, mine: Config) -> None:
    del mine["file_mounts"]["~/.ray/auth_token"]
    [error] = errors(checked(changed(mine)))
    assert re.search(r"file_mounts: no token is brought to ~/\.ray/auth_token of the nodes", error)


@pytest.mark.parametrize("name", ["local.yaml", "gpu.yaml", "gcp.yaml", "kuberay.yaml", "slurm.sbatch"])
def test_torch_uses_a_gpu_before_a_trial_does(name: str) -> None:
    assert """-c 'import torch; torch.zeros(1, device="cuda")'""" in (CLUSTERS / name).read_text().replace(", '", " '")


@pytest.mark.parametrize("name", ["local.yaml", "gpu.yaml", "gcp.yaml"])
def test_the_newest_wheel_is_installed(name: str, tmp_path: Path) -> None:
    [command] = [each for each in loaded(name)["setup_commands"] if "uv pip install" in each]
    dist, uv = tmp_path / "hpo/dist", tmp_path / ".local/bin/uv"
    for number, wheel in enumerate(["hpo-0.10.0-py3-none-any.whl", "hpo-0.9.0-py3-none-any.whl"]):
        dist.mkdir(parents=True, exist_ok=True)
        (dist / wheel).touch()
        os.utime(dist / wheel, (number, number))
    uv.parent.mkdir(parents=True)
    uv.write_text('#!/bin/sh\nfor word; do echo "$word"; done\n')
    uv.chmod(0o755)
    said = subprocess.run(
        ["bash", "-c", command],
        env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    assert [word.split("[")[0] for word in said.stdout.splitlines() if "hpo-" in word] == [
        f"{dist}/hpo-0.9.0-py3-none-any.whl"
    ]


def test_wheels(checked: Checked, mine: Config, folder: Path) -> None:
    wheel = folder / "dist/hpo-0.1.0-py3-none-any.whl"
    (folder / "dist/hpo-0.2.0-py3-none-any.whl").touch()
    assert re.search(r"2 wheels of hpo are in it: hpo-0\.1\.0-.*, hpo-0\.2\.0-", errors(checked(changed(mine)))[0])
    (folder / "dist/hpo-0.2.0-py3-none-any.whl").unlink()
    wheel.unlink()
    assert re.search("no wheel of hpo is in it\n  build it: pip wheel --no-deps", errors(checked(changed(mine)))[0])
    (folder / "dist").rmdir()
    assert re.search("there is no dist\n  build the wheel: pip wheel", errors(checked(changed(mine)))[0])


def test_other_providers_are_checked_as_far_as_is_known(checked: Checked, mine: Config) -> None:
    report = checked(changed(mine, provider={"type": "azure", "location": "westus2"}, head_start_ray_commands=...))
    assert any(re.search(r"provider\.type: no rules are known for azure", note) for note in notes(report))


def test_what_is_no_cluster_file(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    with pytest.raises(ClusterFileError, match=r"x\.yaml: it cannot be read \(.*\n  name a cluster file"):
        check(path)
    path.write_text("a: [1\nb: 2")
    with pytest.raises(ClusterFileError, match=r"x\.yaml: line 2: it is not YAML"):
        check(path)
    for text in ("", "a: 1", "provider: aws", "provider: {}", "- 1"):
        path.write_text(text)
        with pytest.raises(ClusterFileError, match="it starts no cluster that is known here\n  a cluster file of"):
            check(path)
