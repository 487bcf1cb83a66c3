"""What the machines of the clouds hold, and what they cost: facts, with their date and source.

GPUs and cores of AWS's types are those of DescribeInstanceTypes (the tests compare them with moto's copy of it). Prices
are list prices in US dollars an hour on demand, Linux, in the regions named; public tables of 2026 that repeat the
providers' lists (https://aws.amazon.com/ec2/pricing/on-demand/, https://cloud.google.com/compute/all-pricing) agree on
them. Spot machines cost at most as much.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

HOURS_A_MONTH = 730
PRICES_OF = "list prices of 2026"
AWS_REGIONS = ("us-east-1", "us-east-2", "us-west-2")
AWS_USD_PER_GB_MONTH = {"gp3": 0.08, "gp2": 0.10, "io1": 0.125, "io2": 0.125}
GCP_REGIONS = ("us-central1",)
GCP_USD_PER_GB_MONTH = {"pd-standard": 0.04, "pd-balanced": 0.10, "pd-ssd": 0.17}


@dataclass(frozen=True)
class Machine:
    """A type of machine: its cores (hyper-threads), its GPUs, its price an hour on demand."""

    cpus: int
    gpus: int
    gpu: str
    usd_per_h: float


def _family(gpu: str, *rows: tuple[str, int, int, float]) -> dict[str, Machine]:
    return {name: Machine(cpus, gpus, gpu, price) for name, cpus, gpus, price in rows}


AWS: Mapping[str, Machine] = {
    **_family(
        "",
        ("m7i.large", 2, 0, 0.1008),
        ("m7i.xlarge", 4, 0, 0.2016),
        ("m7i.2xlarge", 8, 0, 0.4032),
        ("m7i.4xlarge", 16, 0, 0.8064),
        ("c7i.xlarge", 4, 0, 0.1785),
        ("c7i.2xlarge", 8, 0, 0.357),
        ("c7i.4xlarge", 16, 0, 0.714),
    ),
    **_family(
        "T4",
        ("g4dn.xlarge", 4, 1, 0.526),
        ("g4dn.2xlarge", 8, 1, 0.752),
        ("g4dn.4xlarge", 16, 1, 1.204),
        ("g4dn.8xlarge", 32, 1, 2.176),
        ("g4dn.12xlarge", 48, 4, 3.912),
        ("g4dn.16xlarge", 64, 1, 4.352),
    ),
    **_family(
        "A10G",
        ("g5.xlarge", 4, 1, 1.006),
        ("g5.2xlarge", 8, 1, 1.212),
        ("g5.4xlarge", 16, 1, 1.624),
        ("g5.8xlarge", 32, 1, 2.448),
        ("g5.12xlarge", 48, 4, 5.672),
        ("g5.16xlarge", 64, 1, 4.096),
        ("g5.24xlarge", 96, 4, 8.144),
        ("g5.48xlarge", 192, 8, 16.288),
    ),
    **_family(
        "L4",
        ("g6.xlarge", 4, 1, 0.8048),
        ("g6.2xlarge", 8, 1, 0.9776),
        ("g6.4xlarge", 16, 1, 1.3232),
        ("g6.8xlarge", 32, 1, 2.0144),
        ("g6.12xlarge", 48, 4, 4.6016),
        ("g6.16xlarge", 64, 1, 3.3968),
        ("g6.24xlarge", 96, 4, 6.6752),
        ("g6.48xlarge", 192, 8, 13.3504),
    ),
    **_family(
        "L40S",
        ("g6e.xlarge", 4, 1, 1.861),
        ("g6e.2xlarge", 8, 1, 2.24208),
        ("g6e.4xlarge", 16, 1, 3.00424),
        ("g6e.8xlarge", 32, 1, 4.52856),
        ("g6e.12xlarge", 48, 4, 10.49264),
        ("g6e.16xlarge", 64, 1, 7.57719),
        ("g6e.24xlarge", 96, 4, 15.06559),
        ("g6e.48xlarge", 192, 8, 30.13118),
    ),
    **_family("A100", ("p4d.24xlarge", 96, 8, 21.95764)),
    **_family("H100", ("p5.4xlarge", 16, 1, 6.88), ("p5.48xlarge", 192, 8, 55.04)),
    **_family("H200", ("p5en.48xlarge", 192, 8, 63.296)),
}

GCP: Mapping[str, Machine] = {
    **_family("", ("e2-standard-2", 2, 0, 0.067), ("e2-standard-4", 4, 0, 0.134), ("e2-standard-8", 8, 0, 0.268)),
    **_family("", ("n2-standard-2", 2, 0, 0.097), ("n2-standard-4", 4, 0, 0.194), ("n2-standard-8", 8, 0, 0.388)),
    **_family("L4", ("g2-standard-4", 4, 1, 0.71), ("g2-standard-48", 48, 4, 4.00)),
    **_family(
        "A100",
        ("a2-highgpu-1g", 12, 1, 3.67),
        ("a2-highgpu-2g", 24, 2, 7.35),
        ("a2-highgpu-4g", 48, 4, 14.69),
        ("a2-highgpu-8g", 96, 8, 29.39),
        ("a2-ultragpu-1g", 12, 1, 5.07),
        ("a2-ultragpu-2g", 24, 2, 10.14),
        ("a2-ultragpu-4g", 48, 4, 20.28),
        ("a2-ultragpu-8g", 96, 8, 40.55),
    ),
    **_family("H100", ("a3-highgpu-1g", 26, 1, 11.06), ("a3-highgpu-8g", 208, 8, 88.49)),
}


@dataclass(frozen=True)
class Rented:
    """A node type of a cluster file: its price an hour with disks, and between how many of it there may be."""

    usd_per_h: float
    fewest: int
    most: int


def bounds(head_usd_per_h: float, workers: Iterable[Rented], *, max_workers: int) -> tuple[float, float]:
    """Lowest and highest price an hour: the head and what is always kept; and the dearest that is allowed together."""
    types = sorted(workers, key=lambda each: -each.usd_per_h)
    idle = head_usd_per_h + sum(each.fewest * each.usd_per_h for each in types)
    left, most = max(0, max_workers - sum(each.fewest for each in types)), idle
    for each in types:
        more = min(left, max(0, each.most - each.fewest))
        left, most = left - more, most + more * each.usd_per_h
    return idle, most
