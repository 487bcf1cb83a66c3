"""`hpo monitor`: settings of Prometheus and Grafana, and how to start both."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

_PORT = click.IntRange(min=1, max=65535)


@click.command("monitor")
@click.option("--to", "folder", default="monitoring", show_default=True, metavar="DIR", help="Where the files go.")
@click.option("--prometheus-port", type=_PORT, default=9090, show_default=True, help="Where Prometheus will answer.")
@click.option("--grafana-port", type=_PORT, default=3000, show_default=True, help="Where Grafana will answer.")
@click.option(
    "--discovery", metavar="FILE", help="Ray's list of metrics ports, where Ray does not use its usual folder."
)
def command(folder: str, *, prometheus_port: int, grafana_port: int, discovery: str | None) -> None:
    """Write settings of Prometheus and Grafana that show runs; start both on the machine of Ray's dashboard.

    That is this machine for a run with --dashboard, and the head of a cluster.
    """
    from hpo.engine.dashboard import STUDY_PAGE
    from hpo.engine.monitor import default_discovery, write_monitoring

    made = write_monitoring(
        Path(folder),
        discovery=Path(discovery) if discovery else default_discovery(),
        prometheus_port=prometheus_port,
        grafana_port=grafana_port,
    )
    prometheus = f"http://localhost:{prometheus_port}"
    grafana = f"http://localhost:{grafana_port}"
    data = made.folder / "prometheus-data"
    click.echo(
        f"wrote {made.prometheus} and {made.grafana}\n"
        f"\n"
        f"1. Prometheus (Debian: apt install prometheus):\n"
        f"   prometheus --config.file={_word(made.prometheus)} --storage.tsdb.path={_word(data)} "
        f"--web.listen-address=127.0.0.1:{prometheus_port}\n"
        f"2. Grafana (from grafana.com/grafana/download):\n"
        f"   grafana server --homepath /usr/share/grafana --config {_word(made.grafana)}\n"
        f"3. Ray, told where they are:\n"
        f"   export RAY_PROMETHEUS_HOST={prometheus} RAY_GRAFANA_HOST={grafana}\n"
        f"   python -m hpo.run FILE --dashboard        or, of a cluster: in its file's head_start_ray_commands\n"
        f"\n"
        f"A study's page: {grafana}/d/{STUDY_PAGE}   without Grafana: {prometheus}/graph"
    )


def _word(path: Path) -> str:
    return shlex.quote(str(path))
