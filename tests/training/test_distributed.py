"""One trial by one, two and four processes: the same losses, the same samples, the same checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpo.errors import ExperimentError, WorkerLost
from hpo.training.distributed import ALONE, Team
from hpo.training.learning import Batch
from hpo.training.share import Share
from tests.training.line import Shuffled
from tests.training.ranks import Order, alone, together

RANKS = "tests.training.ranks"
ORDERS = [
    Order("sgd", f"{RANKS}:mlp", {"lr": 0.1, "optimizer": "sgd", "batch_size": 64}),
    Order("adam and augmentation", f"{RANKS}:mlp", {"lr": 3e-3, "batch_size": 64, "augment": ("crop", "flip")}),
    Order("an uneven batch", f"{RANKS}:mlp", {"lr": 0.1, "optimizer": "sgd", "batch_size": 62, "label_smoothing": 0.1}),
    Order("batch norm", f"{RANKS}:conv", {"lr": 0.03, "optimizer": "sgd", "batch_size": 32, "sync_batch_norm": True}),
    Order("micro batches", f"{RANKS}:mlp", {"lr": 0.1, "optimizer": "sgd", "batch_size": 62, "micro_batch_size": 7}),
    Order(
        "blocks that thaw",
        f"{RANKS}:mlp",
        {"lr": 0.1, "optimizer": "sgd", "batch_size": 64, "freeze": 1, "unfreeze_every": 1, "lr_decay_per_block": 0.5},
    ),
    Order("rows of a table", "tests.training.tables:PRODUCT", {"lr": 0.1, "optimizer": "sgd", "batch_size": 21}),
    Order(
        "steps within an epoch",
        "tests.training.tables:PRODUCT",
        {"lr": 0.1, "optimizer": "sgd", "batch_size": 21, "val_check_interval": 4},
        steps=3,
    ),
    Order(
        "chunks",
        "tests.training.test_trainer_growing:deep",
        {"lr": 0.05, "batch_size": 8, "optimizer": "sgd", "chunk_freeze": 1, "sync_batch_norm": True},
        steps=3,
    ),
    Order("batches of the source's own", "tests.training.line:LineFit", {"lr": 0.1, "batch_size": 13}, steps=3),
]
"""The last batch of the last one has one sample, fewer than there are processes."""


def names(orders: list[Order]) -> list[str]:
    return [order.name for order in orders]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def one(folder: Path) -> dict[str, Any]:
    saving = [replace(order, save=str(folder / f"one-{number}.pt")) for number, order in enumerate(ORDERS)]
    return alone([*saving, replace(ORDERS[1], name="three", steps=3)], folder)


@pytest.fixture(scope="module")
def two(folder: Path, one: dict[str, Any]) -> list[dict[str, Any]]:
    adam = ORDERS[1]
    within = replace(adam, config={**adam.config, "dropout": 0.2, "val_check_interval": 8})
    further = [
        replace(within, name="within, saved", steps=1, save=str(folder / "within.pt")),
        replace(within, name="within, loaded", load=str(folder / "within.pt"), save=str(folder / "within, went on.pt")),
        replace(within, name="within, whole", steps=3, save=str(folder / "within, whole.pt")),
        replace(adam, name="saved", save=str(folder / "two.pt")),
        replace(adam, name="loaded", steps=1, load=str(folder / "two.pt"), save=str(folder / "went on.pt")),
        replace(adam, name="whole", steps=3, save=str(folder / "whole.pt")),
        replace(adam, name="of one process", steps=1, load=str(folder / "one-1.pt")),
        replace(
            adam, name="took over", steps=1, config={**adam.config, "lr": 1e-9}, take_over=str(folder / "one-1.pt")
        ),
        Order("unused", f"{RANKS}:partly", {"find_unused_parameters": True, "batch_size": 64, "lr": 0.01}),
        Order("dropped", f"{RANKS}:mlp", {"dropout": 0.5, "batch_size": 64}, steps=1),
        replace(
            adam,
            name="too late to end",
            steps=1,
            config={**adam.config, "epochs": 2},
            take_over=str(folder / "one-1.pt"),
        ),
        Order("few samples", f"{RANKS}:mlp", {"train_samples": 1}),
        Order("too few", f"{RANKS}:mlp", {"batch_size": 1}),
        Order("captured", f"{RANKS}:mlp", {"capture": "on"}),
        Order("unused, unsaid", f"{RANKS}:partly", {"batch_size": 64}),  # the last: it leaves an exchange undone
    ]
    return together(2, [*ORDERS, *further], folder / "two")


@pytest.fixture(scope="module")
def four(folder: Path, two: list[dict[str, Any]]) -> list[dict[str, Any]]:
    of_two = replace(ORDERS[1], name="of two processes", steps=1, load=str(folder / "two.pt"))
    return together(4, [*ORDERS, of_two], folder / "four")


def close(first: list[dict[str, float]], second: list[dict[str, float]]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name] == pytest.approx(other[name], rel=2e-3, abs=2e-3), name


@pytest.mark.integration
class TestAGroup:
    @pytest.mark.parametrize("name", names(ORDERS))
    def test_of_two_or_four_measures_what_one_process_measures(
        self, one: dict[str, Any], two: list[dict[str, Any]], four: list[dict[str, Any]], name: str
    ) -> None:
        for group in (two, four):
            close(group[0][name]["metrics"], one[name]["metrics"])
            assert group[0][name]["num_samples"] == one[name]["num_samples"]
            assert group[0][name]["epochs"] == one[name]["epochs"]

    def test_reports_the_same_from_every_rank_to_the_last_bit(
        self, two: list[dict[str, Any]], four: list[dict[str, Any]]
    ) -> None:
        for group in (two, four):
            for said in group[1:]:
                assert {name: told.get("metrics") for name, told in said.items()} == {
                    name: told.get("metrics") for name, told in group[0].items()
                }

    def test_goes_on_from_its_checkpoint_bit_for_bit(self, two: list[dict[str, Any]], folder: Path) -> None:
        assert two[0]["saved"]["metrics"] == two[0]["whole"]["metrics"][:2]
        assert two[0]["loaded"]["metrics"] == two[0]["whole"]["metrics"][2:]
        went_on, whole = (torch.load(folder / name, weights_only=True) for name in ("went on.pt", "whole.pt"))
        assert all(torch.equal(went_on["model"][name], whole["model"][name]) for name in whole["model"])
        assert whole["stream"] == went_on["stream"]
        assert (whole["stream"]["epoch"], whole["stream"]["position"]) == (3, 0)

    def test_goes_on_in_the_middle_of_an_epoch_bit_for_bit(self, two: list[dict[str, Any]], folder: Path) -> None:
        assert two[0]["within, whole"]["epochs"] == [1, 1, 1]
        assert len(set(two[0]["within, whole"]["num_samples"])) == 2  # the last step is shorter
        assert two[0]["within, saved"]["metrics"] == two[0]["within, whole"]["metrics"][:1]
        assert two[0]["within, loaded"]["metrics"] == two[0]["within, whole"]["metrics"][1:]
        went_on, whole = (
            torch.load(folder / name, weights_only=True) for name in ("within, went on.pt", "within, whole.pt")
        )
        assert all(torch.equal(went_on["model"][name], whole["model"][name]) for name in whole["model"])

    def test_goes_on_from_the_checkpoint_of_another_number_of_processes(
        self, one: dict[str, Any], two: list[dict[str, Any]], four: list[dict[str, Any]], folder: Path
    ) -> None:
        third = one["three"]["metrics"][2:]
        close(two[0]["of one process"]["metrics"], third)
        close(four[0]["of two processes"]["metrics"], third)
        back = replace(ORDERS[1], name="back", steps=1, load=str(folder / "two.pt"))
        close(alone([back], folder)["back"]["metrics"], third)

    def test_takes_over_from_another_trial_with_its_own_numbers(
        self, one: dict[str, Any], two: list[dict[str, Any]]
    ) -> None:
        told = two[0]["took over"]
        assert told["lr"] == [1e-9]
        assert told["epochs"] == [3]
        # With a rate of nothing it measures what the other one's weights are worth.
        assert told["metrics"][0]["val_loss"] == pytest.approx(one["adam and augmentation"]["metrics"][1]["val_loss"])

    def test_says_why_it_is_not_captured(self, two: list[dict[str, Any]]) -> None:
        assert two[0]["sgd"]["notes"]["step"] == "eager: several processes train the trial"
        assert "capture: 'on' is asked for, but several processes train the trial" in two[1]["captured"]["error"]

    def test_takes_a_model_that_does_not_use_all_of_its_parameters(self, two: list[dict[str, Any]]) -> None:
        assert two[0]["unused"]["metrics"][1]["val_accuracy"] > 0.5

    def test_says_what_to_set_for_one_that_does_not(self, two: list[dict[str, Any]]) -> None:
        assert "find_unused_parameters: the model does not use all of its" in two[0]["unused, unsaid"]["error"]

    def test_refuses_fewer_samples_than_processes(self, two: list[dict[str, Any]]) -> None:
        assert "train_samples: 1 samples to train on are too few for 2" in two[0]["few samples"]["error"]

    def test_is_finished_where_what_it_took_over_had_all_the_epochs(self, two: list[dict[str, Any]]) -> None:
        assert two[0]["too late to end"]["finished"] == [True]

    def test_drops_other_features_in_each_process(self, two: list[dict[str, Any]]) -> None:
        assert two[0]["dropped"]["metrics"][0]["train_loss"] > 0

    def test_refuses_a_batch_that_leaves_a_process_without_a_sample(self, two: list[dict[str, Any]]) -> None:
        assert all("batch_size: 1 samples are too few for 2 processes" in said["too few"]["error"] for said in two)


@pytest.mark.gpu
def test_two_processes_on_one_gpu_measure_what_one_measures(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    exact = [replace(order, config={**order.config, "precision": "float32"}) for order in ORDERS[:5]]
    told = together(2, exact, tmp_path, device="cuda")
    one = alone(exact, tmp_path, device="cuda")
    for order in exact:
        close(told[0][order.name]["metrics"], one[order.name]["metrics"])


class Given(Shuffled):
    def __init__(self, num: int) -> None:
        super().__init__(torch.arange(float(num)), torch.arange(num), batch_size=max(num, 1), seed=0)

    def batch(self) -> Batch:
        return self.inputs, self.targets


class TestTeam:
    @given(num=st.integers(1, 200), size=st.integers(1, 9))
    def test_portions_are_the_batch_and_their_weights_its_mean(self, num: int, size: int) -> None:
        portions = [Team(Share(rank, size)).portion(Given(num)) for rank in range(size)]
        counted = [p for p in portions if p.counts]
        assert torch.cat([p.targets for p in counted]).tolist() == list(range(num))
        mean = sum(float(p.inputs.mean()) * p.weight for p in portions) / size
        assert mean == pytest.approx((num - 1) / 2, abs=1e-3)
        assert all(p.sizes[0] <= len(p.targets) <= p.sizes[1] for p in portions)

    @given(num=st.integers(0, 100), size=st.integers(1, 9))
    def test_shares_follow_each_other_and_differ_by_one_at_most(self, num: int, size: int) -> None:
        parts = [range(num)[Share(rank, size).of(num)] for rank in range(size)]
        assert [place for part in parts for place in part] == list(range(num))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert [Share(rank, size).num(num) for rank in range(size)] == [len(part) for part in parts]

    @given(num=st.integers(0, 20), size=st.integers(1, 5))
    def test_batches_are_dealt_once(self, num: int, size: int) -> None:
        batches = [(torch.tensor(n), torch.tensor(n)) for n in range(num)]
        dealt = [int(x) for rank in range(size) for x, _ in Team(Share(rank, size)).dealt(batches, is_share=False)]
        assert sorted(dealt) == list(range(num))

    def test_too_small_a_batch_is_an_error(self) -> None:
        with pytest.raises(
            ExperimentError, match=r"batch_size: 3 samples are too few for 4 processes .*\n  give at least 4"
        ):
            Team(Share(1, 4)).check_batch_size(3)
        ALONE.check_batch_size(1)

    @pytest.mark.parametrize("text", ["[gloo/transport/tcp/pair.cc:1] Connection closed by peer", "NCCL error"])
    def test_a_failed_exchange_is_told_from_what_the_model_raises(self, text: str) -> None:
        team = Team(Share(1, 2))
        with pytest.raises(WorkerLost, match="rank 1 lost touch with the others"), team.in_touch():
            raise RuntimeError(text)
        with pytest.raises(RuntimeError, match="shapes do not fit"), team.in_touch():
            raise RuntimeError("shapes do not fit")
        with pytest.raises(RuntimeError, match=r"closed|NCCL"), ALONE.in_touch():
            raise RuntimeError(text)
