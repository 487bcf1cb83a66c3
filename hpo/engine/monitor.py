"""Settings of Prometheus and Grafana: what to scrape, Ray's own pages, and the page of a study."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray._common.utils import get_default_ray_temp_dir
from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE
from ray.dashboard.modules.metrics.grafana_dashboard_factory import (
    generate_data_grafana_dashboard,
    generate_default_grafana_dashboard,
)

from hpo.engine.dashboard import STUDY_PAGE
from hpo.errors import HpoError
from hpo.files import write_atomically

_PROMETHEUS = """\
# Ray's dashboard keeps the list of its nodes' metrics ports in the file named below, on the head of the cluster.
global:
  scrape_interval: 5s
  evaluation_interval: 5s
scrape_configs:
  - job_name: ray
    file_sd_configs:
      - files: [{discovery}]
        refresh_interval: 10s
"""
_GRAFANA = """\
; Ray's dashboard shows panels of this Grafana in its own pages: hence embedding, and reading without a login. It
; listens on this machine alone.
[server]
http_addr = 127.0.0.1
http_port = {port}
[security]
allow_embedding = true
[auth.anonymous]
enabled = true
org_role = Viewer
[paths]
data = {data}
provisioning = {provisioning}
"""
_DATA_SOURCE = """\
apiVersion: 1
datasources:
  - name: Prometheus
    type: prometheus
    access: proxy
    url: http://localhost:{port}
    isDefault: true
"""
_PAGES = """\
apiVersion: 1
providers:
  - name: hpo
    folder: Ray
    type: file
    options:
      path: {pages}
"""


@dataclass(frozen=True)
class Files:
    """What `write_monitoring` wrote."""

    folder: Path

    @property
    def prometheus(self) -> Path:
        """Settings of Prometheus."""
        return self.folder / "prometheus.yml"

    @property
    def grafana(self) -> Path:
        """Settings of Grafana."""
        return self.folder / "grafana" / "grafana.ini"

    @property
    def provisioning(self) -> Path:
        """Folder of what Grafana finds at its start."""
        return self.folder / "grafana" / "provisioning"

    @property
    def pages(self) -> Path:
        """Folder of the pages."""
        return self.folder / "grafana" / "pages"

    @property
    def study_page(self) -> Path:
        """The page of a study."""
        return self.pages / "hpo_study.json"


def write_monitoring(folder: Path, *, discovery: Path, prometheus_port: int, grafana_port: int) -> Files:
    """The files that Prometheus and Grafana on this machine are started with; those that there are, are replaced.

    Args:
        folder: Where they go; made if it is missing.
        discovery: Ray's list of metrics ports, as a cluster's head has it.
        prometheus_port: Where Prometheus will answer.
        grafana_port: Where Grafana will answer.

    Raises:
        HpoError: The folder cannot be written.
    """
    made = Files(folder.resolve())
    ini = {"port": grafana_port, "data": made.folder / "grafana" / "data", "provisioning": made.provisioning}
    texts = {
        made.prometheus: _PROMETHEUS.format(discovery=json.dumps(str(discovery))),
        made.grafana: _GRAFANA.format(**ini),
        made.provisioning / "datasources" / "prometheus.yml": _DATA_SOURCE.format(port=prometheus_port),
        made.provisioning / "dashboards" / "pages.yml": _PAGES.format(pages=json.dumps(str(made.pages))),
        made.study_page: json.dumps(study_page(), indent=1),
        **{made.pages / name: text for name, text in _rays_pages().items()},
    }
    for path, text in texts.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lambda file, text=text: file.write(text.encode()))  # type: ignore[misc]
        except OSError as error:
            raise HpoError(f"it cannot be written ({error})", where=str(path), remedy="name another folder") from error
    return made


def _rays_pages() -> dict[str, str]:
    """The pages whose panels Ray's dashboard shows, by file name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # Ray leaves it to Python to close what it read
        return {
            "ray_core.json": generate_default_grafana_dashboard()[0],
            "ray_data.json": generate_data_grafana_dashboard()[0],
        }


def default_discovery() -> Path:
    """Where Ray on this machine keeps its list of metrics ports."""
    return Path(str(get_default_ray_temp_dir()), str(PROMETHEUS_SERVICE_DISCOVERY_FILE))


# --- the page of a study -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Panel:
    """One chart: PromQL by legend; `$of` stands for the chosen experiment and run.

    Attributes:
        title: For people.
        queries: PromQL by legend.
        unit: Grafana's name of the unit.
        kind: `timeseries`, or `stat` for a number.
        stacked: Whether its series are stacked.
    """

    title: str
    queries: dict[str, str]
    unit: str = "short"
    kind: str = "timeseries"
    stacked: bool = False


_OF = 'experiment=~"$experiment",run=~"$run"'
PANELS = (
    Panel("Best so far", {"{{metric}}": "ray_hpo_best_value{$of}"}, kind="stat"),
    Panel("Best trial", {"trial": "ray_hpo_best_trial{$of}"}, unit="none", kind="stat"),
    Panel("Trials", {"{{state}}": "ray_hpo_trials{$of} > 0"}, unit="none", kind="stat"),
    Panel("Waiting for a place", {"trials": "ray_hpo_queue{$of}"}, unit="none", kind="stat"),
    Panel("Steps a second", {"": "rate(ray_hpo_steps_done{$of}[1m])"}, kind="stat"),
    Panel(
        "Mean of a step",
        {"": "rate(ray_hpo_steps_busy_s{$of}[5m]) / rate(ray_hpo_steps_done{$of}[5m])"},
        unit="s",
        kind="stat",
    ),
    Panel("Metrics of each trial", {"{{trial}} · {{metric}}": 'ray_hpo_trial_metric{$of,metric=~"$metric"}'}),
    Panel("Score of each trial (larger is better)", {"{{trial}}": "ray_hpo_trial_score{$of}"}),
    Panel("Best so far", {"{{metric}}": "ray_hpo_best_value{$of}"}),
    Panel("Trials", {"{{state}}": "ray_hpo_trials{$of}"}, stacked=True),
    Panel("Epoch of each trial", {"{{trial}}": "ray_hpo_trial_epoch{$of}"}),
    Panel("Seconds of a step", {"{{trial}}": "ray_hpo_trial_step_s{$of}"}, unit="s"),
    Panel(
        "Samples a second",
        {"all": "ray_hpo_samples_per_s{$of}", "{{trial}}": "ray_hpo_trial_samples_per_s{$of}"},
    ),
    Panel("Share of time in steps", {"{{trial}}": "ray_hpo_trial_busy_share{$of}"}, unit="percentunit"),
    Panel("Device memory of each trial", {"{{trial}}": "ray_hpo_trial_device_memory_mb{$of}"}, unit="mbytes"),
    Panel("Trials on each GPU", {"{{node}} {{gpu}}": "ray_hpo_gpu_trials{$of}"}, unit="none"),
    Panel(
        "Share of each GPU's time",
        {
            "{{node}} {{gpu}} in steps": "ray_hpo_gpu_busy_share{$of}",
            "{{instance}} {{GpuIndex}} as its driver counts": "ray_node_gpus_utilization / 100",
        },
        unit="percentunit",
    ),
    Panel(
        "Memory of each GPU",
        {
            "{{node}} {{gpu}} of trials": "ray_hpo_gpu_device_memory_mb{$of}",
            "{{instance}} {{GpuIndex}} as its driver counts": "ray_node_gram_used",
        },
        unit="mbytes",
    ),
    Panel("CPU of each node", {"{{instance}}": "ray_node_cpu_utilization"}, unit="percent"),
    Panel("Memory of each node", {"{{instance}}": "ray_node_mem_used_host"}, unit="bytes"),
)
_WIDTH, _NUMBER, _CHART = 24, (4, 4), (12, 8)  # of the page, of a number and of a chart: columns, rows


def study_page() -> dict[str, Any]:
    """Grafana's JSON of the page, which asks for an experiment, a run and the metrics to draw."""
    return {
        "uid": STUDY_PAGE,
        "title": "hpo study",
        "tags": ["hpo"],
        "schemaVersion": 36,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus", "hide": 2, "refresh": 1},
                _choice("experiment", "label_values(ray_hpo_trials, experiment)"),
                _choice("run", 'label_values(ray_hpo_trials{experiment=~"$experiment"}, run)'),
                _choice("metric", f"label_values(ray_hpo_trial_metric{{{_OF}}}, metric)"),
            ]
        },
        "panels": _laid_out(),
    }


def _choice(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "datasource": _source(),
        "definition": query,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def _source() -> dict[str, str]:
    return {"type": "prometheus", "uid": "${datasource}"}


def _laid_out() -> list[dict[str, Any]]:
    """The panels from left to right and from top to bottom."""
    made: list[dict[str, Any]] = []
    x = y = 0
    for number, panel in enumerate(PANELS, start=1):
        width, height = _NUMBER if panel.kind == "stat" else _CHART
        made.append(_drawn(panel, number) | {"gridPos": {"x": x, "y": y, "w": width, "h": height}})
        x = (x + width) % _WIDTH
        y += height if x == 0 else 0
    return made


def _drawn(panel: Panel, number: int) -> dict[str, Any]:
    field: dict[str, Any] = {"unit": panel.unit}
    if panel.kind == "timeseries":
        field["custom"] = {"fillOpacity": 20, "stacking": {"mode": "normal"}} if panel.stacked else {"fillOpacity": 0}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "datasource": _source(),
        "fieldConfig": {"defaults": field, "overrides": []},
        "options": {"textMode": "auto"} if panel.kind == "stat" else {"tooltip": {"mode": "multi", "sort": "desc"}},
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": _source(),
                "expr": query.replace("$of", _OF),
                "legendFormat": legend or panel.title,
            }
            for index, (legend, query) in enumerate(panel.queries.items())
        ],
    }
