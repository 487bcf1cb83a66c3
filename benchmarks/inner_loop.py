"""What a trial's epochs cost beside the bare loop: hpo's trainer, captured, compiled and eager, against loops by hand.

    python benchmarks/inner_loop.py --data-dir DIR                      # on a GPU: CIFAR-10, ConvNet and ResNet-18
    python benchmarks/inner_loop.py --model mlp --epochs 5              # anywhere: digits

Prints training samples per second, interleaved: `bare` is a loop written by hand on the same tensors, with nothing
around it (on a GPU one captured step, replayed; on a CPU plain PyTorch); hpo's figures are whole epochs of its
trainer with validation left out of neither the work nor the time.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from measuring import machine
from torch import Tensor, nn

from hpo.protocols import Setting
from hpo.training import Classification
from hpo.training.data import Cifar10, Digits
from hpo.training.data.images import default_cache_dir
from hpo.training.models import ConvNet, Mlp
from hpo.training.trainer import ModelTrainer

BATCH_SIZE = 128


def resnet18(num_classes: int) -> nn.Module:
    """torchvision's ResNet-18 with the stem that suits images of 32 x 32."""
    from torchvision.models import resnet18 as resnet

    model = resnet(num_classes=num_classes)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


MODELS: Mapping[str, Callable[..., nn.Module]] = {"convnet": ConvNet, "resnet18": resnet18, "mlp": Mlp}


def trainer(model: str, *, device: str, data_dir: Path | None) -> ModelTrainer:
    task = Classification(model=MODELS[model], data=Cifar10() if data_dir else Digits())
    where = default_cache_dir() if data_dir else Path(tempfile.mkdtemp(prefix="hpo-bench-"))
    setting = Setting(
        device=device,
        num_threads=torch.get_num_threads() if device == "cpu" else 1,
        dataset=task.locate(data_dir),
        cache_dir=where,
        metric="val_accuracy",
        gpus=float(device == "cuda"),
    )
    return ModelTrainer(task, setting)


class Bare:
    """A training loop by hand: the same model, data on the device, crop and flip, Adam; nothing is measured."""

    def __init__(self, model: str, *, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels, self.device = images, labels, images.device
        _, _, height, channels = images.shape[0], *images.shape[1:]
        given = {"in_channels": channels, "num_classes": 10, "in_features": images[0].numel()}
        torch.manual_seed(0)
        kind = MODELS[model]
        takes = {"convnet": ("in_channels", "num_classes"), "mlp": ("in_features", "num_classes")}
        names = takes.get(model, ("num_classes",))
        self.model = kind(**{name: given[name] for name in names}).to(self.device, memory_format=torch.channels_last)
        on_gpu = self.device.type == "cuda"
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3, fused=True, capturable=on_gpu)
        self.rows = torch.zeros(BATCH_SIZE, dtype=torch.int64, device=self.device)
        self.pad = height // 8
        self.step = self._captured() if on_gpu else self._once

    def _once(self) -> None:
        batch = self.images.index_select(0, self.rows).permute(0, 3, 1, 2).float().div_(255).sub_(0.5).div_(0.25)
        size = batch.shape[-1]
        padded = nn.functional.pad(batch, (self.pad,) * 4, mode="reflect")
        shift = torch.randint(0, 2 * self.pad + 1, (2, BATCH_SIZE, 1), device=self.device)
        flip = torch.rand(BATCH_SIZE, 1, device=self.device) < 0.5
        places = torch.arange(size, device=self.device)
        rows, columns = places + shift[0], torch.where(flip, size - 1 - places, places) + shift[1]
        batch = padded[
            torch.arange(BATCH_SIZE, device=self.device)[:, None, None], :, rows[:, :, None], columns[:, None, :]
        ].permute(0, 3, 1, 2)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            loss = nn.functional.cross_entropy(self.model(batch), self.labels.index_select(0, self.rows))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def _captured(self) -> Callable[[], None]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._once()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._once()
        return graph.replay

    def epoch(self) -> float:
        """Samples per second."""
        began = time.perf_counter()
        order = torch.randperm(len(self.labels), device=self.device)
        num = len(order) // BATCH_SIZE
        for rows in order[: num * BATCH_SIZE].split(BATCH_SIZE):
            self.rows.copy_(rows)
            self.step()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return num * BATCH_SIZE / (time.perf_counter() - began)


def hpo_epoch(of: ModelTrainer) -> float:
    """Samples per second of one step."""
    began = time.perf_counter()
    return of.step().num_samples / (time.perf_counter() - began)


def compare(model: str, *, device: str, data_dir: Path | None, epochs: int, compiled: bool) -> None:
    ways = {"captured": {"capture": "auto"}, "eager": {"capture": "off"}}
    if compiled:
        ways["captured and compiled"] = {"capture": "auto", "compile": "on"}
    # Nearly all images train, so that an epoch is training; a validation of a hundredth is in the time all the same.
    config = {"lr": 1e-3, "batch_size": BATCH_SIZE, "augment": ("crop", "flip"), "train_ratio": 0.99}
    trainers = {way: trainer(model, device=device, data_dir=data_dir) for way in ways}
    told: dict[str, Any] = {}
    for way, settings in ways.items():
        trainers[way].begin({**config, **settings}, seed=0)
        told[way] = dict(trainers[way].step().notes)
    images = trainers["eager"]._learning.data.load  # type: ignore[attr-defined]
    located = trainers["eager"]._learning.data.locate(data_dir)  # type: ignore[attr-defined]
    arrays = images(located, cache_dir=trainers["eager"]._setting.cache_dir)
    pixels = torch.from_numpy(arrays.train_images.copy()).to(device)
    bare = Bare(model, images=pixels, labels=torch.from_numpy(arrays.train_labels.copy()).to(device))
    bare.epoch()
    rates: dict[str, list[float]] = {"bare": [], **{way: [] for way in ways}}
    for _ in range(epochs):
        rates["bare"].append(bare.epoch())
        for way in ways:
            rates[way].append(hpo_epoch(trainers[way]))
    base = statistics.median(rates["bare"])
    print(f"{model}, {located.dataset}, batch {BATCH_SIZE}, {epochs} epochs each, medians:")
    for way, found in rates.items():
        rate = statistics.median(found)
        print(f"  {way}: {rate:,.0f} samples/s, {rate / base:.0%} {told.get(way, '')}")
    ratio = statistics.median(rates["captured"]) / statistics.median(rates["eager"])
    print(f"  captured / eager = {ratio:.2f}", flush=True)


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--data-dir", type=Path)
    parse.add_argument("--model", choices=sorted(MODELS), action="append")
    parse.add_argument("--epochs", type=int, default=10)
    parse.add_argument("--compile", action="store_true", help="Captured and compiled, too.")
    options = parse.parse_args()
    print(machine())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for model in options.model or (["convnet", "resnet18"] if options.data_dir else ["convnet", "mlp"]):
        compare(model, device=device, data_dir=options.data_dir, epochs=options.epochs, compiled=options.compile)


if __name__ == "__main__":
    main()
