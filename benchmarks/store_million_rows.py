"""How long do 1,000,000 reports take through the journal and into Parquet, and how long do queries take on them?

Run: python benchmarks/store_million_rows.py [--rows 1000000]
Each query's time is the median of five.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb

from hpo.results import RunStore, Store, read_entries

STEPS = 100
QUERIES = {
    "count": "SELECT count(*) FROM reports",
    "best of each trial, top 10": "SELECT trial, max(score) s FROM reports GROUP BY trial ORDER BY s DESC LIMIT 10",
    "one trial's curve": "SELECT step, val_loss FROM reports WHERE trial = 77 ORDER BY step",
    "mean curve": "SELECT step, avg(val_accuracy) FROM reports GROUP BY step ORDER BY step",
}


def report(trial: int, step: int) -> dict[str, Any]:
    score = 1 - 1 / (1 + step * (1 + trial % 17) / 10)
    metrics = {"val_accuracy": score, "val_loss": 1 - score, "train_loss": 0.9 - score, "val_recall": score * 0.99}
    cost = {"lr": 0.01 / step, "step_s": 0.71, "elapsed_s": 0.71 * step, "samples_per_s": 63_000.5, "gpu_s": 0.71}
    place = {"node": "node-0001", "num_gpus": 1.0, "device_memory_mb": 812.25}
    return {"score": score, "epoch": step, "chunk": None, "metrics": metrics, "finished": False, **cost, **place}


def seconds(act: Callable[[], Any]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def median(act: Callable[[], Any]) -> float:
    return statistics.median(seconds(act) for _ in range(5))


def fill(store: RunStore, num_rows: int) -> None:
    for number in range(num_rows):
        if number % STEPS == 0:
            store.append(
                "proposed", trial=number // STEPS, detail={"config": {"lr": 0.01, "layers": 3}, "seed": number}
            )
        step = number % STEPS + 1
        store.append("report", trial=number // STEPS, attempt=1, step=step, detail=report(number // STEPS, step))


def size(folder: Path, pattern: str) -> str:
    return f"{sum(file.stat().st_size for file in folder.rglob(pattern)) / 2**20:.0f} MiB"


def measure(root: Path, num_rows: int) -> None:
    store = RunStore.create(root, experiment="million", seal_every_rows=10**9, seal_every_s=10**9)
    appending = seconds(lambda: fill(store, num_rows))
    syncing = seconds(store.flush)
    both = appending + syncing
    print(f"append                        {appending:8.2f} s  {num_rows / appending:>10,.0f} rows/s, durable behind it")
    print(f"append until all are durable  {both:8.2f} s  {num_rows / both:>10,.0f} rows/s")
    tail = seconds(lambda: Store(root).sql(QUERIES["count"]))
    print(f"count, nothing sealed         {tail:8.2f} s")
    sealing = seconds(store.close)
    print(f"seal, all in one part         {sealing:8.2f} s  {num_rows / sealing:>10,.0f} rows/s")
    reading = seconds(lambda: read_entries(store.paths))
    print(f"read the journal, to resume   {reading:8.2f} s  {num_rows / reading:>10,.0f} rows/s")
    print(f"journal {size(root, '*.arrow')}, Parquet {size(root, '*.parquet')}\n")
    print(f"{'query':<28}{'Store':>12}{'DuckDB alone':>16}")
    plain = duckdb.connect()
    plain.execute(f"CREATE VIEW reports AS FROM '{root}/reports/*/*/*.parquet'")
    for name, query in QUERIES.items():
        ours = median(lambda: Store(root).sql(query))  # noqa: B023 - called before the next turn
        alone = median(lambda: plain.sql(query).to_arrow_table())  # noqa: B023
        print(f"{name:<28}{ours * 1e3:9.0f} ms{alone * 1e3:13.0f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, default=1_000_000)
    with tempfile.TemporaryDirectory(prefix="hpo-store-") as folder:
        measure(Path(folder), parser.parse_args().rows)


if __name__ == "__main__":
    main()
