"""The settings of Prometheus and Grafana, and that the page asks for nothing that is not there."""

from __future__ import annotations

import configparser
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from hpo.cli import main
from hpo.engine.dashboard import STUDY_PAGE
from hpo.engine.gauges import LABELS, METRICS
from hpo.engine.monitor import Files, default_discovery, study_page, write_monitoring

OURS = {metric.served_as: {*LABELS, *metric.labels} for metric in METRICS}
RAYS_LABELS = {"instance", "GpuIndex"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("monitoring") / "new" / "with space"
    return write_monitoring(folder, discovery=Path("/ray/ports.json"), prometheus_port=9191, grafana_port=3131)


def queries() -> list[tuple[str, str]]:
    """PromQL and legend of each curve."""
    return [(target["expr"], target["legendFormat"]) for panel in study_page()["panels"] for target in panel["targets"]]


def names(query: str) -> list[str]:
    return re.findall(r"\bray_\w+", query)


@pytest.mark.parametrize(("query", "legend"), queries())
def test_a_query_names_gauges_and_labels_that_there_are(made: Files, query: str, legend: str) -> None:
    rays = set(names((made.pages / "ray_core.json").read_text()))
    assert names(query)
    for name in names(query):
        assert name in OURS or name in rays
    selected = re.findall(r"[{,](\w+)=~", query)
    for label in [*selected, *re.findall(r"{{(\w+)}}", legend)]:
        assert label in set.intersection(*(OURS.get(name, RAYS_LABELS) for name in names(query)))
    assert "$of" not in query


def test_every_gauge_is_on_the_page() -> None:
    assert set(OURS) <= {name for query, _ in queries() for name in names(query)}


def test_each_choice_is_asked_of_a_gauge_that_has_the_label() -> None:
    chosen = {choice["name"]: choice for choice in study_page()["templating"]["list"]}
    used = {name for query, _ in queries() for name in re.findall(r"\$(\w+)", query)}
    assert used == set(chosen) - {"datasource"}
    for name in used:
        asked, label = re.fullmatch(r"label_values\((.*), (\w+)\)", chosen[name]["query"]["query"]).groups()  # type: ignore[union-attr]
        assert label == name
        assert name in OURS[names(asked)[0]]


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in study_page()["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken
        taken |= cells
    assert len({panel["id"] for panel in study_page()["panels"]}) == len(study_page()["panels"])


def test_prometheus_reads_rays_list_of_ports(made: Files) -> None:
    settings = yaml.safe_load(made.prometheus.read_text())
    (job,) = settings["scrape_configs"]
    assert job["file_sd_configs"][0]["files"] == ["/ray/ports.json"]


def test_grafana_finds_prometheus_and_the_pages(made: Files) -> None:
    ini = configparser.ConfigParser()
    ini.read(made.grafana)
    assert (ini["server"]["http_addr"], ini["server"]["http_port"]) == ("127.0.0.1", "3131")
    assert ini["security"].getboolean("allow_embedding")
    found = Path(ini["paths"]["provisioning"])
    (source,) = _yaml(found / "datasources" / "prometheus.yml")["datasources"]
    assert (source["name"], source["url"]) == ("Prometheus", "http://localhost:9191")  # Ray asks for it by this name
    (provider,) = _yaml(found / "dashboards" / "pages.yml")["providers"]
    pages = [json.loads(page.read_text()) for page in Path(provider["options"]["path"]).glob("*.json")]
    assert {page["uid"] for page in pages} >= {STUDY_PAGE, "rayDefaultDashboard"}


def _yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def test_the_command_says_how_to_start_both(tmp_path: Path) -> None:
    folder = tmp_path / "my monitoring"
    words = ["monitor", "--to", str(folder), "--prometheus-port", "9191", "--discovery", "/ray/ports.json"]
    said = CliRunner().invoke(main, words)
    assert said.exit_code == 0
    assert f"--config.file='{folder}/prometheus.yml'" in said.output
    assert f"--config '{folder}/grafana/grafana.ini'" in said.output
    assert "RAY_PROMETHEUS_HOST=http://localhost:9191 RAY_GRAFANA_HOST=http://localhost:3000" in said.output
    assert f"http://localhost:3000/d/{STUDY_PAGE}" in said.output
    assert "/ray/ports.json" in (folder / "prometheus.yml").read_text()


def test_rays_usual_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/elsewhere")
    assert default_discovery() == Path("/elsewhere/ray/prom_metrics_service_discovery.json")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = CliRunner().invoke(main, ["monitor", "--to", str(tmp_path / "file")])
    assert said.exit_code == 1
    assert re.search(r"prometheus\.yml: it cannot be written.*\n.*name another folder", said.output)
