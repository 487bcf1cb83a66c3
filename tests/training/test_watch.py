"""What is watched, against cases worked out by hand, and that watching changes nothing of what is trained."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from hpo.errors import ExperimentError
from hpo.protocols import Task
from hpo.training import Classification
from hpo.training.blueprint import blueprint, difference
from hpo.training.cuda_graph import cuda_graph
from hpo.training.data import Digits
from hpo.training.distributed import ALONE
from hpo.training.models import ConvNet
from hpo.training.step import Record
from hpo.training.trainer import ModelTrainer
from hpo.training.watch import ActivationWatch, UpdateWatch, layers_of
from tests.training.fresh import trainer_of
from tests.training.line import Line, LineFit
from tests.training.ranks import Order, alone, together
from tests.training.recorders import called_again
from tests.training.test_stepping import CONFIG, trainer_on

LINE = "tests.training.line:LineFit"
SGD = {"lr": 0.1, "batch_size": 40, "optimizer": "sgd"}
BOTH = frozenset(("gradients", "updates"))


def read(found: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: float(value) for name, value in found.items()}


class Two(nn.Module):
    """Two layers and a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([2.0]))
        self.first, self.second = nn.Linear(2, 1), nn.Linear(1, 1, bias=False)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[3.0, 0.0]]))
            self.first.bias.fill_(4.0)
            self.second.weight.fill_(10.0)

    def give(self, scale: float, first: list[float], second: float) -> Two:
        """Gradients: of the first layer those of its two weights and of its bias."""
        self.scale.grad = torch.tensor([scale])
        self.first.weight.grad, self.first.bias.grad = torch.tensor([first[:2]]), torch.tensor(first[2:])
        self.second.weight.grad = torch.tensor([[second]])
        return self


def stepped(watch: UpdateWatch, model: nn.Module, *, lr: float = 0.5) -> None:
    with watch.step():
        torch.optim.SGD(model.parameters(), lr=lr).step()


class TestLayers:
    def test_a_layer_is_the_module_that_a_part_lies_in(self) -> None:
        assert layers_of(["stem", "blocks.0.conv", "head"]) == ["stem", "blocks.0.conv", "head"]

    def test_where_there_are_many_those_of_one_module_count_as_one(self) -> None:
        paths = [f"layer{stage}.{block}.{part}" for stage in (1, 2) for block in (0, 1) for part in ("conv", "norm")]
        assert layers_of(paths, most=7) == [path.rpartition(".")[0] for path in paths]
        assert layers_of(paths, most=3) == [path.partition(".")[0] for path in paths]
        assert layers_of(paths, most=1) == [""] * 8

    @given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(".".join)), st.integers(1, 9))
    def test_are_never_too_many_and_each_is_around_its_part(self, paths: list[str], most: int) -> None:
        layers = layers_of(paths, most=most)
        assert len(layers) == len(paths)
        assert len({layer for layer in layers if layer}) <= most
        assert all(f"{path}.".startswith(f"{layer}.") or not layer for path, layer in zip(paths, layers, strict=True))


class TestUpdates:
    def test_the_figures_of_one_step_of_sgd(self) -> None:
        model = Two().give(scale=0.0, first=[0.6, 0.0, 0.8], second=2.0)
        watch = UpdateWatch(model, BOTH)
        stepped(watch, model)
        # The first layer goes from (3, 0, 4) by half of (0.6, 0, 0.8) to (2.7, 0, 3.6), the second from 10 to 9.
        found = read(watch.result())
        assert found == pytest.approx(
            {
                "grad_norm.scale": 0.0,
                "grad_norm.first": 1.0,
                "grad_norm.second": 2.0,
                "grad_norm": math.sqrt(5),
                "update_ratio.scale": 0.0,
                "update_ratio.first": 0.5 / 4.5,
                "update_ratio.second": 1 / 9,
                "update_ratio": math.sqrt(0.25 + 1) / math.sqrt(4 + 4.5**2 + 81),
            }
        )

    def test_they_are_means_over_the_steps_of_an_epoch(self) -> None:
        model = Two()
        watch = UpdateWatch(model, BOTH)
        stepped(watch, model.give(scale=1.0, first=[1.0, 1.0, 1.0], second=1.0))
        watch.clear()
        for second in (1.0, 3.0):
            with torch.no_grad():
                model.second.weight.fill_(second)
            stepped(watch, model.give(scale=0.0, first=[0.0, 0.0, 0.0], second=second))
        found = read(watch.result())
        assert found["grad_norm.second"] == pytest.approx(2.0)
        assert found["update_ratio.second"] == pytest.approx((0.5 + 1.5) / (0.5 + 1.5))
        assert found["grad_norm.first"] == found["update_ratio.first"] == 0.0

    def test_only_what_was_asked_for_is_told(self) -> None:
        model = Two().give(scale=1.0, first=[1.0, 1.0, 1.0], second=1.0)
        for name, told in (("gradients", "grad_norm"), ("updates", "update_ratio")):
            watch = UpdateWatch(model, frozenset((name,)))
            stepped(watch, model)
            assert set(watch.result()) == {told, f"{told}.scale", f"{told}.first", f"{told}.second"}

    def test_an_infinite_gradient_spoils_no_other_layers_figures(self) -> None:
        model = Two().give(scale=0.0, first=[math.inf, math.nan, 0.0], second=2.0)
        watch = UpdateWatch(model, BOTH)
        stepped(watch, model)
        found = read(watch.result())
        assert math.isnan(found["grad_norm.first"])
        assert math.isnan(found["grad_norm"])
        assert found["grad_norm.second"] == 2.0
        assert found["update_ratio.second"] == pytest.approx(1 / 9)

    def test_a_layer_of_zeros_that_does_not_move_has_the_ratio_0(self) -> None:
        model = nn.Sequential(nn.Linear(1, 1, bias=False))
        nn.init.zeros_(model[0].weight)
        watch = UpdateWatch(model, BOTH)
        stepped(watch, model)  # nor is there a gradient
        assert read(watch.result())["update_ratio.0"] == read(watch.result())["grad_norm.0"] == 0.0

    def test_a_step_that_fails_is_not_counted(self) -> None:
        model = Two().give(scale=1.0, first=[1.0, 1.0, 1.0], second=1.0)
        watch = UpdateWatch(model, BOTH)
        with pytest.raises(torch.OutOfMemoryError), watch.step():
            raise torch.OutOfMemoryError
        stepped(watch, model.give(scale=0.0, first=[0.0, 0.0, 0.0], second=2.0))
        assert read(watch.result())["grad_norm.second"] == 2.0

    def test_frozen_layers_are_left_out_until_they_thaw(self) -> None:
        model = Two()
        model.first.requires_grad_(False)
        watch = UpdateWatch(model, BOTH)
        stepped(watch, model.give(scale=0.0, first=[0.0, 0.0, 0.0], second=2.0))
        assert set(watch.result()) >= {"grad_norm.second"}
        assert "grad_norm.first" not in watch.result()
        model.first.requires_grad_(True)
        watch.clear()
        stepped(watch, model.give(scale=0.0, first=[0.0, 3.0, 4.0], second=0.0))
        assert read(watch.result())["grad_norm.first"] == read(watch.result())["grad_norm"] == 5.0

    def test_a_model_with_nothing_to_train_has_nothing_to_tell_of_its_layers(self) -> None:
        model = Two().requires_grad_(False)
        watch = UpdateWatch(model, BOTH)
        with watch.step():
            pass
        assert set(watch.result()) == {"grad_norm", "update_ratio"}

    @given(st.lists(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=4), min_size=1, max_size=5), st.integers(1, 5))
    def test_the_norm_of_all_is_that_of_the_layers_norms(self, grads: list[list[float]], num_steps: int) -> None:
        model = nn.ParameterDict({f"p{number}": nn.Parameter(torch.ones(len(g))) for number, g in enumerate(grads)})
        for number, grad in enumerate(grads):
            model[f"p{number}"].grad = torch.tensor(grad)
        watch = UpdateWatch(model, BOTH)
        for _ in range(num_steps):
            stepped(watch, model, lr=1e-3)
        found = read(watch.result())
        squares = sum(found[f"grad_norm.p{number}"] ** 2 for number in range(len(grads)))
        assert found["grad_norm"] == pytest.approx(math.sqrt(squares), abs=1e-9)


class Reused(nn.Module):
    """Rectifies twice by one module: of (x, -x) and of (x - 10, x)."""

    def __init__(self) -> None:
        super().__init__()
        self.relu, self.weight = nn.ReLU(), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.relu(torch.stack([x, -x], 1)) + self.relu(torch.stack([x - 10, x], 1))
        return outputs


class TestActivations:
    def over(self, model: nn.Module, *batches: Tensor) -> dict[str, float]:
        watch = ActivationWatch(model)
        with watch.over_pass(), torch.no_grad():
            for batch in batches:
                model(batch)
        return read(watch.result(ALONE))

    def test_a_unit_is_dead_where_no_sample_of_any_batch_has_it_above_0(self) -> None:
        model = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 2), nn.ReLU6())
        with torch.no_grad():
            model[0].weight.copy_(torch.tensor([[1.0], [-1.0], [0.0], [0.0]]))
            model[0].bias.copy_(torch.tensor([0.0, 0.0, 1.0, -1.0]))
            model[2].weight.zero_()
            model[2].bias.copy_(torch.tensor([1.0, -1.0]))
        positive, negative = torch.tensor([[1.0], [2.0]]), torch.tensor([[-1.0]])
        assert self.over(model, positive, negative) == {
            "dead_share.1": 0.25,
            "dead_share.3": 0.5,
            "dead_share": pytest.approx(2 / 6),
        }
        assert self.over(model, positive)["dead_share.1"] == 0.5

    def test_a_channel_is_alive_where_any_of_its_places_is(self) -> None:
        model = nn.Sequential(nn.ReLU())
        maps = torch.zeros(2, 3, 4, 4)
        maps[1, 2, 0, 3] = 1.0
        assert self.over(model, maps)["dead_share.0"] == pytest.approx(2 / 3)
        assert self.over(model, maps.to(memory_format=torch.channels_last))["dead_share"] == pytest.approx(2 / 3)

    def test_of_a_sequence_the_features_are_units(self) -> None:
        model = nn.Sequential(nn.ReLU())
        tokens = torch.zeros(2, 7, 5)
        tokens[0, 3, 1] = 1.0
        assert self.over(model, tokens, torch.zeros(1, 9, 5))["dead_share"] == pytest.approx(4 / 5)
        assert self.over(model, torch.tensor([0.0, 1.0]), torch.zeros(3))["dead_share"] == 0.0

    def test_each_use_of_a_module_counts(self) -> None:
        assert self.over(Reused(), torch.tensor([1.0, 2.0]))["dead_share.relu"] == pytest.approx(2 / 4)
        assert self.over(Reused(), torch.tensor([1.0]), torch.tensor([-20.0]))["dead_share.relu"] == pytest.approx(
            1 / 4
        )

    def test_a_pass_begins_anew_and_leaves_the_model_as_it_was(self) -> None:
        model = nn.Sequential(nn.Linear(1, 1), nn.ReLU())
        before = blueprint(model)
        with torch.no_grad():
            model[0].weight.fill_(1.0)
            model[0].bias.zero_()
        watch = ActivationWatch(model)
        for number, dead in ((1.0, 0.0), (-1.0, 1.0)):
            with watch.over_pass():
                model(torch.tensor([[number]]))
            model(torch.tensor([[1.0]]))
            assert read(watch.result(ALONE)) == {"dead_share.1": dead, "dead_share": dead}
        assert not difference(before, blueprint(model))

    def test_nothing_is_told_of_a_model_without_rectifiers(self) -> None:
        assert self.over(nn.Sequential(nn.Linear(1, 1), nn.GELU()), torch.ones(1, 1)) == {}


class Deep(nn.Module):
    """Two layers with a rectifier between them."""

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.body, self.relu, self.head = nn.Linear(in_features, 8), nn.ReLU(), nn.Linear(8, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.relu(self.body(inputs))).squeeze(1)
        return outputs


def deep() -> Task:
    return LineFit(model=Deep)


def first_epoch(folder: Path, **config: Any) -> Mapping[str, float]:
    trainer = trainer_of("tests.training.test_watch:deep", metric="val_loss", cache_dir=str(folder))
    trainer.begin({**SGD, **config}, seed=3)
    return trainer.step().metrics


class TestTrials:
    def test_report_what_is_watched_and_train_the_same(self, tmp_path: Path) -> None:
        config = {"batch_size": 8, "ema": 0.5, "l1": 1e-3, "grad_clip": 0.1}
        plain, watched = (first_epoch(tmp_path, **config, watch=watch) for watch in ((), "all"))
        assert {name: watched[name] for name in plain} == plain
        assert set(watched) - set(plain) == {
            "grad_norm",
            "grad_norm.body",
            "grad_norm.head",
            "update_ratio",
            "update_ratio.body",
            "update_ratio.head",
            "dead_share",
            "dead_share.relu",
            "gap",
        }
        assert watched["gap"] == watched["val_loss"] - watched["train_loss"]

    def test_the_figures_are_those_of_plain_pytorch(self, tmp_path: Path) -> None:
        trainer = trainer_of("tests.training.test_watch:deep", metric="val_loss", cache_dir=str(tmp_path))
        trainer.begin({**SGD, "grad_clip": 0.1, "watch": ("gradients", "updates")}, seed=3)
        model = trainer._running.model
        before = {name: value.detach().clone() for name, value in model.named_parameters()}
        points = trainer._source
        loss = (model(points.inputs[:40]) - points.targets[:40]).square().mean()
        grads = dict(zip(before, torch.autograd.grad(loss, list(model.parameters())), strict=True))
        found = trainer.step().metrics  # one batch of all samples
        norm = {
            layer: math.hypot(*(float(grads[name].norm()) for name in grads if layer in name)) for layer in ("body", "")
        }
        weights = math.hypot(*(float(value.detach().norm()) for value in model.parameters()))
        assert found["grad_norm"] == pytest.approx(norm[""], rel=1e-5)
        assert found["grad_norm.body"] == pytest.approx(norm["body"], rel=1e-5)
        assert norm[""] > 0.1  # so that it was clipped, which the figure does not show
        assert found["update_ratio"] == pytest.approx(0.1 * 0.1 / weights, rel=1e-4)

    def test_a_step_of_several_micro_batches_counts_once(self, tmp_path: Path) -> None:
        whole, pieces = (
            first_epoch(tmp_path, batch_size=20, micro_batch_size=micro, watch="all") for micro in (None, 3)
        )
        assert pieces == pytest.approx(whole, rel=1e-4)

    def test_an_average_of_the_weights_changes_what_is_measured_and_not_the_steps(self, tmp_path: Path) -> None:
        plain, averaged = (first_epoch(tmp_path, batch_size=8, ema=ema, watch="all") for ema in (0.0, 0.9))
        assert averaged["gap"] != plain["gap"]
        assert averaged["grad_norm"] == plain["grad_norm"]
        assert averaged["update_ratio.head"] == plain["update_ratio.head"]

    def test_frozen_layers_are_told_of_from_when_they_thaw(self, tmp_path: Path) -> None:
        trainer = trainer_of("tests.training.test_watch:deep", metric="val_loss", cache_dir=str(tmp_path))
        trainer.begin({**SGD, "freeze": "body", "unfreeze_every": 1, "watch": "updates"}, seed=3)
        assert "update_ratio.body" not in trainer.step().metrics
        assert trainer.step().metrics["update_ratio.body"] > 0

    def test_go_on_from_a_checkpoint_with_the_same_figures(self, tmp_path: Path) -> None:
        trainer = trainer_of("tests.training.test_watch:deep", metric="val_loss", cache_dir=str(tmp_path))
        config = {**SGD, "batch_size": 8, "momentum": 0.9, "watch": "all"}
        trainer.begin(config, seed=3)
        trainer.step()
        trainer.save(tmp_path / "one.pt")
        whole = [trainer.step().metrics for _ in range(2)]
        trainer.begin(config, seed=3)
        trainer.load(tmp_path / "one.pt")
        assert [trainer.step().metrics for _ in range(2)] == whole

    @pytest.mark.parametrize("watch", ["losses", ("gradients", "losses"), 3])
    def test_what_cannot_be_watched_is_refused(self, watch: Any) -> None:
        with pytest.raises(ExperimentError, match=r"watch: .* is not a name, or a tuple of names, out of 'gradients'"):
            LineFit().check_config({"watch": watch})

    def test_a_gap_needs_a_loss(self) -> None:
        task = WithoutLoss(model=Line)
        task.check_config({"watch": "all"})
        with pytest.raises(ExperimentError, match="watch: 'gap' is between two losses, and the task measures error"):
            task.check_config({"watch": ("gap",)})


class WithoutLoss(LineFit):
    """A task whose measure has another name."""

    @property
    def measures(self) -> tuple[str, ...]:
        return ("error",)


class TestCaptured:
    """Trials in one process; on a CPU what is captured is called again."""

    device: ClassVar[str] = "cpu"
    record: ClassVar[Record] = staticmethod(called_again)
    tolerance: ClassVar[float] = 1e-4
    compared: ClassVar[tuple[str, ...]] = ("train_", "val_", "grad_norm", "update_ratio", "dead_share", "gap")

    def metrics(self, trainer: ModelTrainer, **config: Any) -> tuple[str, Mapping[str, float]]:
        trainer.begin({**CONFIG, "dropout": 0.0, "augment": (), **config}, seed=1)
        trainer.step()
        step = trainer.step()
        return trainer._stepping.notes["step"], step.metrics

    def test_figures_are_those_of_a_step_that_is_not(self, tmp_path: Path) -> None:
        trainer = trainer_on(self.device, tmp_path, record=type(self).record)
        note, captured = self.metrics(trainer, watch="all")
        assert note == "captured"
        note, again = self.metrics(trainer, watch="all", lr=0.001)
        assert note == "captured before: it fits this trial, too"
        assert again["update_ratio"] < captured["update_ratio"]
        for found, lr in ((captured, CONFIG["lr"]), (again, 0.001)):
            _, eager = self.metrics(trainer_on(self.device, tmp_path, record=None), watch="all", capture="off", lr=lr)
            names = [name for name in eager if name.startswith(self.compared)]
            assert [found[name] for name in names] == pytest.approx([eager[name] for name in names], rel=self.tolerance)

    def test_a_step_that_is_watched_serves_no_trial_that_is_not(self, tmp_path: Path) -> None:
        trainer = trainer_on(self.device, tmp_path, record=type(self).record)
        watched = [self.metrics(trainer, watch=watch) for watch in (("gap", "activations"), "gap", "gradients", "gap")]
        assert [note for note, _ in watched] == ["captured", "captured before: it fits this trial, too"] + [
            "captured"
        ] * 2
        assert any("grad_norm." in name for name in watched[2][1])
        assert not any("grad_norm" in name for name in watched[3][1])


@pytest.mark.gpu
class TestCapturedOnGpu(TestCaptured):
    device = "cuda"
    record = staticmethod(cuda_graph)
    tolerance = 0.1  # its sums come in another order each time
    compared = ("grad_norm", "update_ratio")

    @pytest.fixture(autouse=True)
    def _needs_a_gpu(self) -> None:
        if not torch.cuda.is_available():
            pytest.skip("no GPU here")


def test_nothing_that_is_watched_is_needed_on_the_host() -> None:
    cuda = torch.device("cuda", 0)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = nn.Sequential(nn.Linear(4, 3, device=cuda), nn.ReLU(), nn.Linear(3, 2, device=cuda))
        inputs = torch.ones(5, 4, device=cuda)
        updates, activations = UpdateWatch(model, BOTH), ActivationWatch(model)
        updates.clear()
        for weight in model.parameters():
            weight.grad = torch.ones_like(weight)  # a backward pass asks for a real device
        with updates.step(), torch.no_grad():
            for weight in model.parameters():
                weight.sub_(weight.grad)
        with activations.over_pass():
            model(inputs)
        found = updates.result() | activations.result(ALONE)
        assert {value.device for value in found.values()} == {cuda}
        with pytest.raises(DataDependentOutputException):
            float(found["grad_norm"])


def conv() -> Task:
    return Classification(model=functools.partial(ConvNet, filters=(4, 8)), data=Digits())


@pytest.mark.integration
class TestAGroup:
    """Of validation there is one batch, so that one of two processes has nothing to measure."""

    def test_reports_what_one_process_reports(self, tmp_path: Path) -> None:
        config = {"lr": 0.03, "optimizer": "sgd", "batch_size": 64, "sync_batch_norm": True, "watch": "all"}
        orders = [
            Order("conv", "tests.training.test_watch:conv", config),
            Order("micro", "tests.training.test_watch:conv", {**config, "micro_batch_size": 16, "norm": "none"}),
            Order("none", LINE, {**SGD, "watch": "all"}),
        ]
        one, two = alone(orders, tmp_path), together(2, orders, tmp_path / "two")
        for order in orders:
            first, second = (said[order.name]["metrics"] for said in two)
            assert first == second
            for ours, theirs in zip(first, one[order.name]["metrics"], strict=True):
                assert ours == pytest.approx(theirs, rel=5e-3, abs=2e-3)
        assert any("dead_share." in name for name in one["conv"]["metrics"][0])
        assert not any("dead_share" in name for name in one["none"]["metrics"][0])


class TestTheLog:
    def lines(self, caplog: pytest.LogCaptureFixture, folder: Path, **config: Any) -> list[str]:
        with caplog.at_level(logging.INFO, logger="hpo.training.trainer"):
            first_epoch(folder, batch_size=8, **config)
        return [record.getMessage() for record in caplog.records if record.name == "hpo.training.trainer"]

    @pytest.mark.parametrize("print_freq", [None, 0])
    def test_has_a_line_for_each_epoch(
        self, caplog: pytest.LogCaptureFixture, tmp_path: Path, print_freq: int | None
    ) -> None:
        (line,) = self.lines(caplog, tmp_path, print_freq=print_freq, watch="gradients")
        assert line.startswith("epoch 1: train_loss ")
        assert ", val_loss " in line
        assert ", grad_norm " in line  # and no layer's
        assert "grad_norm." not in line
        assert line.endswith(", lr 0.1")

    def test_has_a_line_for_every_so_many_batches(self, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
        lines = self.lines(caplog, tmp_path, print_freq=2)
        assert [line.partition(":")[0] for line in lines] == [
            "epoch 1, batch 2 of 5",
            "epoch 1, batch 4 of 5",
            "epoch 1",
        ]
        assert lines[0].endswith(", lr 0.1")

    def test_tells_the_mean_of_the_epoch_so_far(self, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
        *_, last, epoch = self.lines(caplog, tmp_path, print_freq=5)
        mean = last.partition("train_loss ")[2].partition(",")[0]
        assert epoch.startswith(f"epoch 1: train_loss {mean},")

    def test_refuses_a_negative_number(self) -> None:
        with pytest.raises(ExperimentError, match="print_freq: -1 is not an integer of at least 0, or None"):
            LineFit().check_config({"print_freq": -1})
