"""Rules for a Slurm batch script that runs Ray on the nodes of one job."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping

from hpo.engine.cluster_file.finding import Finding

_DIRECTIVE = re.compile(r"#SBATCH\s+(.*)")
_SHORT = {"-N": "--nodes", "-n": "--ntasks", "-t": "--time", "-G": "--gpus", "-c": "--cpus-per-task"}


def is_batch_script(text: str) -> bool:
    """Whether Slurm would find a directive in it."""
    return text.startswith("#!") and bool(re.search(r"^#SBATCH\b", text, re.MULTILINE))


def rules(text: str) -> Iterator[Finding]:
    """What is wrong with the script: with what it asks of Slurm, and with what it starts there."""
    asked = _asked(text)
    yield from _late_directives(text)
    yield from _asked_rules(asked)
    command = _ray_command(text)
    if command is None:
        yield Finding("script", "no srun starts `ray symmetric-run`", "start Ray once a node: srun ray symmetric-run …")
        return
    yield from _ray_rules(command, asked)
    if "RAY_AUTH_MODE=token" not in text:
        problem = "Ray starts without token authentication, and others may log in to these nodes"
        yield Finding("script", problem, "export RAY_AUTH_MODE=token before srun")


def _directives(text: str) -> list[str]:
    """The directives that Slurm reads: it stops at the first command."""
    found = []
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            break
        if match := _DIRECTIVE.match(line):
            found.append(match.group(1))
    return found


def _asked(text: str) -> Mapping[str, str]:
    asked: dict[str, str] = {}
    for directive in _directives(text):
        words = shlex.split(directive, comments=True)
        for index, word in enumerate(words):
            name, equals, value = word.partition("=")
            if name.startswith("-"):
                follows = words[index + 1] if index + 1 < len(words) else ""
                asked[_SHORT.get(name, name)] = value if equals else "" if follows.startswith("-") else follows
    return asked


def _late_directives(text: str) -> Iterator[Finding]:
    every = [match for line in text.splitlines() if (match := _DIRECTIVE.match(line))]
    for match in every[len(_directives(text)) :]:
        problem = "it stands below the first command, where Slurm reads no more"
        yield Finding(f"#SBATCH {match.group(1)}", problem, "move it up")


def _asked_rules(asked: Mapping[str, str]) -> Iterator[Finding]:
    if "--time" not in asked:
        yield Finding("#SBATCH --time", "not given: the partition's limit ends the study", "name it; a study resumes")
    if asked.get("--ntasks-per-node") != "1":
        problem = f"{asked.get('--ntasks-per-node', 'not given')}: Ray is to be started once a node"
        yield Finding("#SBATCH --ntasks-per-node", problem, "write --ntasks-per-node=1")
    if "--exclusive" not in asked:
        problem = "not given: `ray stop` at the end would end any other Ray of yours on a shared node"
        yield Finding("#SBATCH --exclusive", problem, "ask for whole nodes")


def _ray_command(text: str) -> list[str] | None:
    """The words of `srun … ray symmetric-run …`, continuation lines joined."""
    for line in re.sub(r"\\\n", " ", text).splitlines():
        if not line.lstrip().startswith("#") and "ray symmetric-run" in line:
            return shlex.split(line, comments=True)
    return None


def _ray_rules(words: list[str], asked: Mapping[str, str]) -> Iterator[Finding]:
    if "--" not in words:
        yield Finding("ray symmetric-run", "no -- before the command", "write -- between Ray's options and the command")
    given = {name: value for name, equals, value in (word.partition("=") for word in words) if equals}
    host = given.get("--dashboard-host")
    if host not in {None, "127.0.0.1", "localhost"}:
        yield Finding("--dashboard-host", f"{host} opens the dashboard to others", "write 127.0.0.1, and tunnel by SSH")
    nodes = asked.get("--nodes", "1")
    waits = given.get("--min-nodes", "1")
    if waits.isdigit() and waits != nodes:
        problem = f"{waits}, but {nodes} nodes are asked for"
        yield Finding("--min-nodes", problem, 'write --min-nodes="$SLURM_JOB_NUM_NODES"')
    has, uses = _gpus_asked(asked), given.get("--num-gpus")
    if has is None:
        yield Finding("#SBATCH --gpus-per-node", "not given: trials would get CPU cores only", "name it", serious=False)
    elif uses is not None and uses.isdigit() and int(uses) != has:
        problem = f"{uses} used, but {has} a node are asked for"
        yield Finding("--num-gpus", problem, 'write --num-gpus="$SLURM_GPUS_ON_NODE"')


def _gpus_asked(asked: Mapping[str, str]) -> int | None:
    """GPUs a node: of --gpus-per-node, --gpus-per-task (one task a node) or --gres=gpu[:type]:number."""
    for name in ("--gpus-per-node", "--gpus-per-task", "--gres"):
        if name in asked and (name != "--gres" or asked[name].startswith("gpu")):
            number = asked[name].rpartition(":")[2]
            return int(number) if number.isdigit() else 1
    return None
