"""Rules for every file of Ray's cluster launcher (`ray up`), whichever cloud it names; and for machines with SSH."""

from __future__ import annotations

import contextlib
import io
import ipaddress
import json
import logging
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import ray.autoscaler
from ray.autoscaler._private.util import prepare_config, validate_config

from hpo.engine.cluster_file.finding import Finding, mapping, sequence, unknown_names
from hpo.engine.cluster_file.source import commands

_AUTOSCALER = {
    "type",
    "disable_node_updaters",
    "disable_launch_config_check",
    "foreground_node_launch",
    "worker_liveness_check",
    "use_internal_ips",
    "use_external_head_ip",
    "cache_stopped_nodes",
}
PROVIDERS: Mapping[str, set[str]] = {
    "aws": _AUTOSCALER | {"region", "availability_zone", "key_pair", "security_group", "aws_credentials", "cloudwatch"},
    "gcp": _AUTOSCALER | {"region", "availability_zone", "project_id", "gcp_credentials"},
    "local": _AUTOSCALER | {"head_ip", "worker_ips", "external_head_ip", "coordinator_address"},
}
_KEPT_AT = ".ray/auth_token"
_MAKE_ONE = "make one: (umask 077; ray get-auth-token --generate > /dev/null)"
_DOCUMENTATION = [ipaddress.ip_network(net) for net in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24")]
_HEALTH = "RAY_health_check_"


def schema_findings(config: Mapping[str, Any]) -> Iterator[Finding]:
    """What Ray's own schema, and its rules between fields, say about the file."""
    folder = Path(ray.autoscaler.__file__).parent
    schema = json.loads((folder / "ray-schema.json").read_text(encoding="utf-8"))
    serious = False
    for error in sorted(jsonschema.Draft7Validator(schema).iter_errors(config), key=lambda each: list(each.path)):
        serious = True
        where = ".".join(str(part) for part in error.absolute_path) or "file"
        if error.validator == "additionalProperties":
            yield from unknown_names(error.instance, error.schema.get("properties", {}), where=where)
        else:
            yield Finding(where, f"Ray's schema refuses it: {error.message}", "see docs.ray.io, cluster YAML options")
    if not serious:
        yield from _prepared(config)


def _prepared(config: Mapping[str, Any]) -> Iterator[Finding]:
    chatter = logging.getLogger("ray")
    level = chatter.level
    chatter.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            validate_config(prepare_config(dict(config)))
    except Exception as error:  # noqa: BLE001 - Ray raises whatever its rules come to
        yield Finding("file", f"Ray refuses it: {str(error).strip() or type(error).__name__}", "correct that field")
    finally:
        chatter.setLevel(level)


def general(config: Mapping[str, Any], *, folder: Path) -> Iterator[Finding]:
    """Rules that hold for every provider.

    Args:
        config: The file as YAML reads it.
        folder: Where `ray up` is to be started: its relative paths count from there.
    """
    provider = mapping(config.get("provider"))
    if known := PROVIDERS.get(str(provider.get("type"))):
        yield from unknown_names(provider, known, where="provider")
    yield from _file_mounts(config, folder=folder)
    yield from _token(config)
    yield from _dashboard(config)
    yield from _packages(config)
    yield from _ray_start(config)


def _file_mounts(config: Mapping[str, Any], *, folder: Path) -> Iterator[Finding]:
    for remote, local in mapping(config.get("file_mounts")).items():
        where = f"file_mounts.{remote}"
        path = folder / Path(str(local)).expanduser()
        is_token = str(remote).endswith(_KEPT_AT)
        if not path.exists():
            remedy = "`ray up` counts relative paths from the folder it is started in"
            if Path(str(local)).name == "dist":
                remedy = "build the wheel: pip wheel --no-deps --wheel-dir dist ."
            yield Finding(where, f"there is no {local}", _MAKE_ONE if is_token else remedy)
        elif is_token:
            mode = stat.S_IMODE(path.stat().st_mode)
            if mode & 0o077:
                yield Finding(where, f"{local} has mode {mode:04o}: others may read it", f"chmod 600 {local}")
        elif path.name == "dist":
            yield from _wheels(path, where)


def _wheels(folder: Path, where: str) -> Iterator[Finding]:
    wheels = sorted(each.name for each in folder.glob("hpo-*.whl"))
    build = "pip wheel --no-deps --wheel-dir dist ."
    if not wheels:
        yield Finding(where, "no wheel of hpo is in it", f"build it: {build}")
    elif len(wheels) > 1:
        yield Finding(where, f"{len(wheels)} wheels of hpo are in it: {', '.join(wheels)}", "keep the one to install")


def _token(config: Mapping[str, Any]) -> Iterator[Finding]:
    common = commands(config, "setup_commands")
    for kind in ("head", "worker"):
        name = f"{kind}_start_ray_commands"
        if not any("RAY_AUTH_MODE=token" in each for each in [*common, *commands(config, name)]):
            remedy = "export RAY_AUTH_MODE=token before `ray start`: without a token Ray's jobs API runs anyone's code"
            yield Finding(name, "Ray starts without token authentication", remedy)
    mounts = mapping(config.get("file_mounts"))
    if not any(str(remote).endswith(_KEPT_AT) for remote in mounts):
        remedy = f'add "~/{_KEPT_AT}": "~/{_KEPT_AT}"; {_MAKE_ONE}'
        yield Finding("file_mounts", f"no token is brought to ~/{_KEPT_AT} of the nodes", remedy)


def _dashboard(config: Mapping[str, Any]) -> Iterator[Finding]:
    where = "head_start_ray_commands"
    start = [each for each in commands(config, where) if "ray start" in each]
    for command in start:
        hosts = re.findall(r"--dashboard-host[= ]+(\S+)", command)
        if not hosts or any(host.strip("'\"") not in {"127.0.0.1", "localhost", "::1"} for host in hosts):
            found = f"is {hosts[-1]}" if hosts else "is not named"
            remedy = "write --dashboard-host=127.0.0.1 and reach it through `ray dashboard FILE`"
            yield Finding(where, f"the dashboard's address {found}", remedy)


def _packages(config: Mapping[str, Any]) -> Iterator[Finding]:
    every = commands(config, "initialization_commands", "setup_commands", "head_setup_commands")
    every += commands(config, "worker_setup_commands")
    for command in every:
        if "ray-wheels" in command or "nightly" in command:
            yield Finding("setup_commands", f"it installs a nightly wheel: {command}", "install the pinned release")
    if mapping(config.get("provider")).get("type") in {"aws", "gcp"}:
        for name in ("setup_commands", "head_setup_commands"):
            if name not in config:
                remedy = f"name {name}, if only as []"
                yield Finding(name, "not given, so Ray installs packages of its own choice (a nightly wheel)", remedy)
    if not any(re.search(r"(--constraints?[= ]|-c )\S*constraints", each) for each in every):
        remedy = "install with --constraint constraints.txt, so that all nodes have the versions that were tested"
        yield Finding("setup_commands", "no command pins the packages", remedy)


def _ray_start(config: Mapping[str, Any]) -> Iterator[Finding]:
    for kind, needed in (
        ("head", ("--head", "--autoscaling-config")),
        ("worker", ("--address=$RAY_HEAD_IP",)),
    ):
        name = f"{kind}_start_ray_commands"
        starts = [each for each in commands(config, name) if "ray start" in each]
        if not starts:
            yield Finding(name, "no command starts Ray", "name it: Ray's own opens the dashboard to everyone")
            continue
        for word in needed:
            if not any(word in each for each in starts):
                yield Finding(name, f"`ray start` lacks {word}", "add it")
    if not any(_HEALTH in each for each in commands(config, "head_start_ray_commands")):
        problem = f"no {_HEALTH}… is set: a dead node is noticed after about 66 s"
        yield Finding("head_start_ray_commands", problem, "clusters/local.yaml sets 13 s", serious=False)


def local(config: Mapping[str, Any]) -> Iterator[Finding]:
    """Rules for `provider.type: local`: machines that exist."""
    provider = mapping(config.get("provider"))
    head, workers = provider.get("head_ip"), sequence(provider.get("worker_ips"))
    if "coordinator_address" not in provider:
        for name, given in (("head_ip", head), ("worker_ips", workers)):
            if not given:
                yield Finding(f"provider.{name}", "not given", "name the machines by the addresses SSH reaches them at")
    if examples := [str(each) for each in (head, *workers) if _is_example(each)]:
        problem = f"{', '.join(examples)}: addresses of examples, which no machine has"
        yield Finding("provider", problem, "write those of your machines")
    if head in workers or len(set(map(str, workers))) < len(workers):
        yield Finding("provider.worker_ips", "a machine is named twice", "name each once, the head not among them")
    if not any("RAY_enable_autoscaler_v2=0" in each for each in commands(config, "head_start_ray_commands")):
        remedy = "export RAY_enable_autoscaler_v2=0 before `ray start --head`"
        problem = "the second autoscaler counts the head as a worker here, and one worker never starts"
        yield Finding("head_start_ray_commands", problem, remedy)
    if not mapping(config.get("auth")).get("ssh_user"):
        yield Finding("auth.ssh_user", "not given", "name the user that SSH logs in as")
    key = mapping(config.get("auth")).get("ssh_private_key")
    if key and not Path(str(key)).expanduser().exists():
        yield Finding("auth.ssh_private_key", f"there is no {key}", "name the key that opens the machines")


def _is_example(address: Any) -> bool:
    try:
        given = ipaddress.ip_address(str(address))
    except ValueError:  # a name
        return False
    return any(given in network for network in _DOCUMENTATION)
