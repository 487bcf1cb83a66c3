"""`hpo cluster`: check the file that starts a cluster, and make beforehand what it names."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.group()
def cluster() -> None:
    """Check the files in clusters/, and prepare an account for them."""


@cluster.command()
@click.argument("file", type=click.Path(path_type=Path))
def check(file: Path) -> None:
    """Look for what is wrong with FILE, and say what it costs an hour, without touching a cloud.

    FILE is one for `ray up`, one of KubeRay (RayCluster, RayJob) or a batch script of Slurm. Start the command in the
    folder that `ray up` will be started in: relative paths in the file count from there.
    """
    from hpo.engine.cluster_file import check as check_file

    report = check_file(file)
    for finding in report.findings:
        click.echo(f"{'error' if finding.serious else 'note'}: {finding}", err=finding.serious)
    if report.costs is not None:
        click.echo(f"costs: {report.costs}")
    elif report.kind.startswith("Ray cluster on") and not report.kind.endswith("local"):
        click.echo("costs: not known, as the price of one of its machines is not")
    if report.refused:
        num = sum(finding.serious for finding in report.findings)
        click.echo(f"{file}: {num} error{'s' if num > 1 else ''} in this {report.kind}", err=True)
        sys.exit(2)
    click.echo(f"{file}: a {report.kind}, nothing wrong was found")


@cluster.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--ssh-from", required=True, metavar="CIDR", help="The network that may log in, such as 203.0.113.0/24.")
@click.option("--bucket", required=True, help="The S3 bucket for results; made if there is none.")
@click.option("--vpc", metavar="ID", help="The VPC of the cluster.  [default: the account's default VPC]")
def prepare(file: Path, ssh_from: str, bucket: str, vpc: str | None) -> None:
    """Make what the AWS cluster FILE names: security group, instance profile, bucket. Again is harmless."""
    from hpo.engine.cluster_file import read_launcher_file
    from hpo.engine.prepare_aws import Wanted
    from hpo.engine.prepare_aws import prepare as prepare_account

    wanted = Wanted.of_file(read_launcher_file(file), ssh_from=ssh_from, bucket=bucket, vpc=vpc, where=str(file))
    for line in prepare_account(wanted):
        click.echo(line)
