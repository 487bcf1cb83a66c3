"""Files that start clusters, checked without touching a cloud."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hpo.engine.cluster_file import aws, gcp, kuberay, launcher, slurm
from hpo.engine.cluster_file.finding import ClusterFileError, Costs, Finding, Report
from hpo.engine.cluster_file.source import lost_in_reading, parse, unusable_commands

__all__ = ["ClusterFileError", "Costs", "Finding", "Report", "check", "read_launcher_file"]

_RULES: Mapping[str, Callable[[Mapping[str, Any]], Iterator[Finding]]] = {
    "aws": aws.rules,
    "gcp": gcp.rules,
    "local": launcher.local,
}
_COSTS: Mapping[str, Callable[[Mapping[str, Any]], Costs | None]] = {"aws": aws.costs, "gcp": gcp.costs}


def check(path: Path, *, folder: Path | None = None) -> Report:
    """Everything that is wrong with a file of Ray's cluster launcher, of KubeRay or of Slurm, and what it costs.

    Args:
        path: The file.
        folder: Where `ray up` is to be started, which is what relative paths in the file count from; the current one.

    Raises:
        ClusterFileError: It is none of these, or cannot be read.
    """
    text = _text(path)
    if slurm.is_batch_script(text):
        return Report("Slurm batch script", tuple(slurm.rules(text)))
    documents = parse(text, where=str(path))
    lost = tuple(lost_in_reading(text))
    if kuberay.is_kuberay(documents):
        return Report("KubeRay file", (*lost, *kuberay.rules(documents)))
    return _launcher_report(_only(documents, path), lost, folder=folder or Path())


def _launcher_report(config: Mapping[str, Any], lost: tuple[Finding, ...], *, folder: Path) -> Report:
    kind = str(config["provider"]["type"])
    schema = tuple(launcher.schema_findings(config))
    if schema:
        return Report(f"Ray cluster on {kind}", (*lost, *schema))
    findings = (*lost, *unusable_commands(config), *launcher.general(config, folder=folder))
    if kind in _RULES:
        findings += tuple(_RULES[kind](config))
    else:
        problem = f"no rules are known for {kind}: its schema and commands were checked, not its machines"
        findings += (Finding("provider.type", problem, serious=False),)
    costs = _COSTS[kind](config) if kind in _COSTS else None
    return Report(f"Ray cluster on {kind}", findings, costs)


def read_launcher_file(path: Path) -> Mapping[str, Any]:
    """A file of Ray's cluster launcher, as YAML reads it.

    Raises:
        ClusterFileError: It is not one.
    """
    return _only(parse(_text(path), where=str(path)), path)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ClusterFileError(f"it cannot be read ({error})", where=str(path), remedy="name a cluster file") from error


def _only(documents: list[Any], path: Path) -> Mapping[str, Any]:
    config = documents[0] if len(documents) == 1 else None
    provider = config.get("provider") if isinstance(config, Mapping) else None
    if not isinstance(config, Mapping) or not isinstance(provider, Mapping) or not provider.get("type"):
        remedy = (
            "a cluster file of `ray up` has provider.type, one of KubeRay apiVersion ray.io/v1, one of Slurm #SBATCH"
        )
        raise ClusterFileError("it starts no cluster that is known here", where=str(path), remedy=remedy)
    return config
