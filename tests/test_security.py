"""What docs/security.md claims of the code as a whole."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpo.results import RunStore

ROOT = Path(__file__).resolve().parent.parent
UNPICKLERS = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
# It builds NumPy arrays and plain containers, and refuses everything else that a pickle asks for.
RESTRICTED = "hpo/training/data/python_batches.py"
CODE = [(str(path.relative_to(ROOT)), ast.parse(path.read_text())) for path in sorted((ROOT / "hpo").rglob("*.py"))]


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """Each call in the package: its place, what is called, and the call."""
    for name, tree in CODE:
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                yield f"{name}:{node.lineno}", ast.unparse(node.func), node


def given(call: ast.Call, name: str) -> str | None:
    return next((ast.unparse(each.value) for each in call.keywords if each.arg == name), None)


def test_checkpoints_are_loaded_as_weights_only() -> None:
    loads = [(place, call) for place, called, call in calls() if called == "torch.load"]
    assert loads, "the package loads checkpoints somewhere"
    for place, call in loads:
        assert given(call, "weights_only") == "True", place
    for name, tree in CODE:
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == "torch":
                assert "load" not in {each.name for each in node.names}, f"{name}: write torch.load"


def test_nothing_is_unpickled_but_cifar_and_that_restricted() -> None:
    for name, tree in CODE:
        for node in ast.walk(tree):
            modules = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            used = UNPICKLERS & {module.partition(".")[0] for module in modules}
            assert not used or name == RESTRICTED, f"{name} imports {used}"
    for place, called, call in calls():
        assert given(call, "allow_pickle") in {None, "False"}, place
        assert not called.startswith("pickle.load"), f"{place}: a pickle may run any code"


def test_no_text_is_run_as_code() -> None:
    for place, called, call in calls():
        assert called not in {"eval", "exec", "os.system", "yaml.load", "yaml.unsafe_load", "yaml.full_load"}, place
        assert given(call, "shell") in {None, "False"}, place
        if called in {"yaml.compose", "yaml.compose_all"}:
            assert given(call, "Loader") == "yaml.SafeLoader", place


def test_a_run_is_arrow_parquet_and_json(tmp_path: Path) -> None:
    with RunStore.create(tmp_path / "results", experiment="x", run_id="20260101-000000-abcd") as store:
        start = {"resumed": False, "goal": "score", "mode": "max", "trials": 1, "digest": "d", "dataset": "toy"}
        start |= {"dataset_fingerprint": "f", "git_commit": None, "versions": {}, "host": "h", "pid": 1}
        store.append("run_started", detail=start)
        store.append("proposed", trial=0, detail={"config": {"x": 0.5}, "seed": 1})
        store.append("run_ended", detail={"state": "finished", "reason": ""})
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    for path in files:
        content = path.read_bytes()
        kind = "arrow" if content[:6] == b"ARROW1" or path.suffix == ".arrow" else path.suffix
        assert kind in {"arrow", ".parquet", ".json", ".lock", ".tfevents", ""} or ".tfevents." in path.name, path
        assert not re.match(rb"\x80[\x02-\x05]", content), f"{path} begins like a pickle"


@pytest.mark.parametrize("folder", ["hpo", "clusters", "docs", "experiments", "benchmarks"])
def test_no_secret_is_in_the_repository(folder: str) -> None:
    secret = re.compile(r"\b(AKIA|ASIA)[0-9A-Z]{16}\b|BEGIN [A-Z ]*PRIVATE KEY|\bghp_[0-9A-Za-z]{36}\b")
    for path in (ROOT / folder).rglob("*"):
        if path.is_file() and path.suffix in {".py", ".md", ".yaml", ".sbatch", ".json", ".toml", ".txt", ""}:
            found = secret.search(path.read_text(encoding="utf-8", errors="replace"))
            assert not found, f"{path.relative_to(ROOT)}: {found and found[0]}"
