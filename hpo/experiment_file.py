"""An experiment as a file: finding it, importing it, and knowing when it has changed."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import sys
import traceback
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hpo.errors import ExperimentError
from hpo.experiment import Experiment, digest_of
from hpo.start_from import START_FROM, BestOf, parse

_PACKAGE = Path(__file__).resolve().parent
_PREFIX = "hpo_experiment_"  # so that `random.py` or `test.py` shadows no module of that name


SMOKE = {"trials": 2, "epochs": 2, "train_samples": 256, "val_samples": 128}
"""What `--smoke` changes, as far as an experiment takes it: enough to see whether it runs at all.

Trials that would begin with the best weights of another experiment begin with their own, which needs no other run.
"""


@dataclass(frozen=True)
class ExperimentFile:
    """An experiment, the file that it came from, and what was changed from outside.

    Attributes:
        path: The file, as an absolute path.
        shown: The file as the user named it, for messages.
        experiment: Checked, with all overrides applied.
        quick: Whether its `quick` settings were applied.
    """

    path: Path
    shown: str
    experiment: Experiment
    quick: bool = False

    @property
    def name(self) -> str:
        """Name of the experiment: that of the file, without `.py`."""
        return self.path.stem

    @cached_property
    def description(self) -> dict[str, Any]:
        """JSON of all that the outcome depends on, the task's source included."""
        return {**self.experiment.describe(), "source": source_digests(self.path)}

    @property
    def digest(self) -> str:
        """Changes when the description does; runs with the same digest continue each other."""
        return digest_of(self.description)


def load(
    path: str | Path, *, quick: bool = False, smoke: bool = False, overrides: dict[str, Any] | None = None
) -> ExperimentFile:
    """The checked experiment of a file, `quick`, then what `smoke` makes tiny, and then `overrides` applied.

    Raises:
        ExperimentError: The file is missing, cannot be imported, or declares something that cannot be; `where`
            begins with the file.
    """
    shown = str(path)
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise ExperimentError(
            "there is no such file", where=shown, remedy="name an experiment file, e.g. experiments/x.py"
        )
    experiment = import_experiment(file, shown=shown)
    try:
        experiment.check()
        if quick and not experiment.quick:
            raise ExperimentError("it has no quick settings", where="quick", remedy='add quick={"trials": 8, …} to it')
        # A wrong quick is an error of the file, whether it is asked for or not.
        quicker = experiment.with_overrides(experiment.quick, source="quick")
        quicker.check()
        experiment = quicker if quick or smoke else experiment
        if smoke:
            experiment = _tiny(experiment)
        if overrides:
            experiment = experiment.with_overrides(overrides, source="--set")
            experiment.check()
    except ExperimentError as error:
        raise error.inside(shown) from None
    return ExperimentFile(path=file, shown=shown, experiment=experiment, quick=quick or smoke)


def _tiny(experiment: Experiment) -> Experiment:
    """The experiment with as little of `SMOKE` as it takes."""
    for name, value in SMOKE.items():
        try:
            smaller = experiment.with_overrides({name: value}, source="--smoke")
            smaller.check()
        except ExperimentError:
            continue  # its task knows no such name
        experiment = smaller
    for name in (START_FROM, f"start.{START_FROM}"):
        values = experiment.space[name].examples() if name in experiment.space else [experiment.fixed.get(name)]
        if any(isinstance(parse(value), BestOf) for value in values):
            experiment = experiment.with_overrides({name: None}, source="--smoke")
    return experiment


def parse_settings(settings: tuple[str, ...]) -> dict[str, Any]:
    """The values of `--set NAME=VALUE`: JSON or a Python literal where it is one, else text.

    Raises:
        ExperimentError: One has no `=` or no name.
    """
    parsed = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name.strip():
            raise ExperimentError(f"{setting!r} is not NAME=VALUE", where="--set", remedy="e.g. --set batch_size=64")
        parsed[name.strip()] = _literal(value.strip())
    return parsed


def _literal(text: str) -> Any:
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    return text


def import_experiment(file: Path, *, shown: str = "") -> Experiment:
    """The `experiment` that the file declares, unchecked; modules beside the file can be imported by it."""
    shown = shown or str(file)
    if str(file.parent) not in sys.path:
        sys.path.insert(0, str(file.parent))
    name = _PREFIX + file.stem
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ExperimentError("it is not a Python file", where=shown, remedy="name an experiment file ending in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up here
    try:
        spec.loader.exec_module(module)
    except ExperimentError as error:
        raise error.inside(shown) from None
    except Exception as error:
        raise ExperimentError(
            f"importing it raised {type(error).__name__}: {error}",
            where=_line_of(error, file, shown),
            remedy="mend the file",
        ) from error
    experiment = getattr(module, "experiment", None)
    if not isinstance(experiment, Experiment):
        found = "is missing" if experiment is None else f"is a {type(experiment).__name__}"
        raise ExperimentError(
            f"the name `experiment` {found}", where=shown, remedy="write `experiment = Experiment(task=…, space=…, …)`"
        )
    return experiment


def _line_of(error: Exception, file: Path, shown: str) -> str:
    if isinstance(error, SyntaxError) and error.filename == str(file):
        return f"{shown}:{error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    return f"{shown}:{lines[-1]}" if lines else shown


def neighbours(file: Path) -> list[Path]:
    """Modules beside the file, or in packages beside it, that have been imported in this process."""
    folder = file.parent
    origins = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    # Some modules make their names up: torch's `torch.classes` says that it comes from `_classes.py`.
    found = {Path(o).resolve() for o in origins if isinstance(o, str) and o.endswith(".py") and Path(o).is_absolute()}
    return sorted(
        path
        for path in found
        if path.is_relative_to(folder)
        and path != file
        and "site-packages" not in path.parts
        and not path.is_relative_to(_PACKAGE)
    )


def source_digests(file: Path) -> dict[str, str]:
    """A hash for the file and each neighbour that it imports, blind to comments, layout and docstrings.

    Of the file itself the experiment's own declaration is left out, and the constants that only it uses: what they
    say is compared value by value.
    """
    digests = {file.name: _hash(_task_source(ast.parse(file.read_text(encoding="utf-8"))))}
    for path in neighbours(file):
        digests[str(path.relative_to(file.parent))] = _hash(ast.parse(path.read_text(encoding="utf-8")))
    return digests


def _hash(tree: ast.Module) -> str:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and ast.get_docstring(
            node
        ):
            node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]


def _task_source(tree: ast.Module) -> ast.Module:
    """The module without the experiment's declaration, and without names that only this one uses."""
    kept = [node for node in tree.body if "experiment" not in _bound(node)]
    used = {name for node in kept if not _bound(node) for name in _loaded(node)}
    while not (more := {name for node in kept if _bound(node) & used for name in _loaded(node)}) <= used:
        used |= more
    tree.body = [node for node in kept if not _bound(node) or _bound(node) & used]
    return tree


def _bound(node: ast.stmt) -> set[str]:
    """Names that an assignment or an import binds; none for other statements, which are always kept."""
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {name.id for name in targets if isinstance(name, ast.Name)}


def _loaded(node: ast.stmt) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
