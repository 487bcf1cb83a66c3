from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hpo.errors import ExperimentError
from hpo.training.data import Samples
from hpo.training.data.rows import RowBatches, Rows, RowsInOrder, Scaling
from hpo.training.share import Share

CPU = torch.device("cpu")


def rows(num: int = 40, *, is_scaled: bool = True, device: torch.device = CPU) -> Rows:
    """Two features of each row: its number, and 1."""
    inputs = np.stack([np.arange(num), np.ones(num)], axis=1).astype(np.float64)
    return Rows(Samples(inputs, np.arange(num)), device=device, is_scaled=is_scaled)


def doubling(device: torch.device = CPU) -> Scaling:
    return Scaling(torch.tensor([1.0, 0.0], device=device), torch.tensor([2.0, 1.0], device=device))


def flat(batches: RowBatches | RowsInOrder) -> tuple[Tensor, Tensor]:
    parts = [(inputs.clone(), targets.clone()) for inputs, targets in batches]
    return torch.cat([inputs for inputs, _ in parts]), torch.cat([targets for _, targets in parts])


def test_inputs_are_normalised_and_belong_to_their_targets() -> None:
    inputs, targets = flat(RowBatches(rows(), plan=np.arange(40), batch_size=8, seed=1, scaling=doubling()))
    assert inputs.dtype == torch.float32
    assert torch.equal(inputs[:, 0], 2 * (targets.float() - 1))
    assert torch.equal(inputs[:, 1], torch.ones(40))


def test_whole_numbers_stay_whole() -> None:
    tokens = Rows(Samples(np.zeros((3, 4), np.uint8), np.ones((3, 4), np.int32)), device=CPU)
    assert tokens.inputs.dtype == tokens.targets.dtype == torch.int64
    assert tokens.nbytes == 2 * 12 * 8
    assert len(tokens) == 3


@given(st.integers(1, 60), st.integers(1, 50), st.integers(0, 2**63 - 1))
def test_an_epoch_holds_samples_at_most_once(num: int, batch_size: int, seed: int) -> None:
    indices = np.sort(np.random.default_rng(0).permutation(80)[:num])
    stream = RowBatches(rows(80, is_scaled=False), plan=indices, batch_size=batch_size, seed=seed)
    sizes = [len(targets) for _, targets in stream]
    size = min(batch_size, num)
    assert sizes == [size] * (num // size)
    assert stream.num_samples == sum(sizes)
    stream.restore({"epoch": 0})
    _, targets = flat(stream)
    assert targets.unique().numel() == targets.numel()
    assert set(targets.tolist()) <= set(indices.tolist())


@pytest.mark.parametrize("size", [2, 3])
def test_the_shares_of_several_processes_are_the_batch(size: int) -> None:
    how = {"plan": np.arange(1, 40), "batch_size": 8, "seed": 3}
    whole = RowBatches(rows(), **how)
    streams = [RowBatches(rows(), **how, share=Share(rank, size)) for rank in range(size)]
    batches = [targets.clone() for _, targets in whole]
    shares = [[targets.clone() for _, targets in stream] for stream in streams]
    assert whole.whole_batch is None
    assert {stream.whole_batch for stream in streams} == {8}
    assert {stream.num_samples for stream in streams} == {whole.num_samples}
    for batch, *parts in zip(batches, *shares, strict=True):
        assert torch.equal(torch.cat(parts), batch)


def test_epochs_differ_and_seeds_differ() -> None:
    stream, other = (RowBatches(rows(), plan=np.arange(40), batch_size=8, seed=seed) for seed in (1, 2))
    orders = [flat(part)[1] for part in (stream, stream, other)]
    assert not any(torch.equal(orders[i], orders[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize("seen", [0, 1, 3])
def test_goes_on_where_the_state_was_taken(seen: int) -> None:
    original, restored = (RowBatches(rows(), plan=np.arange(35), batch_size=8, seed=9) for _ in range(2))
    for _ in range(seen):
        flat(original)
    restored.restore(json.loads(json.dumps(original.state())))
    for _ in range(2):
        assert torch.equal(flat(original)[1], flat(restored)[1])


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 3), st.data())
def test_goes_on_between_any_two_batches(num: int, batch_size: int, epoch: int, data: st.DataObject) -> None:
    stored = rows()
    whole, original, restored = (
        RowBatches(stored, plan=np.arange(num), batch_size=batch_size, seed=9) for _ in range(3)
    )
    expected = [targets.tolist() for _ in range(epoch + 2) for _, targets in whole]
    num_batches = len(expected) // (epoch + 2)
    position = data.draw(st.integers(0, num_batches))
    for _ in range(epoch):
        list(original)
    original.begin_epoch()
    assert all(original.advance() for _ in range(position))
    restored.restore(json.loads(json.dumps(original.state())))
    left = expected[epoch * num_batches + position :]
    again = [targets.tolist() for _ in range(2) for _, targets in restored]
    assert again[: len(left)] == left


def test_looking_ahead_changes_nothing() -> None:
    plain, looking = (RowBatches(rows(), plan=np.arange(32), batch_size=8, seed=5) for _ in "ab")
    for _ in range(3):
        first, second = flat(plain), flat(looking)
        looking.look_ahead()
        assert torch.equal(first[1], second[1])
    looking.restore({"epoch": 0})
    plain.restore({"epoch": 0})
    assert torch.equal(flat(plain)[1], flat(looking)[1])


def test_a_batch_is_computed_from_tensors_that_stay() -> None:
    data = rows()
    one, other = (
        RowBatches(data, plan=np.arange(32), batch_size=8, seed=seed, scaling=scaling)
        for seed, scaling in ((1, doubling()), (2, Scaling.none(2, CPU)))
    )
    assert one.place == other.place
    assert one.place != RowBatches(data, plan=np.arange(32), batch_size=4, seed=1).place
    assert one.place != RowBatches(rows(), plan=np.arange(32), batch_size=8, seed=1).place
    one.batch()
    one.begin_epoch()
    while one.advance():
        for mine, its in zip(one.batch(), other.batch(), strict=True):
            assert torch.equal(mine, its)


def test_each_trial_brings_its_own_scaling_to_the_shared_place() -> None:
    data = rows()
    one = RowBatches(data, plan=np.arange(32), batch_size=8, seed=1, scaling=doubling())
    other = RowBatches(data, plan=np.arange(32), batch_size=8, seed=1, scaling=Scaling.none(2, CPU))
    doubled, plain, again = flat(one)[0], flat(other)[0], flat(one)[0]
    assert torch.equal(plain[:, 0].sort().values, torch.arange(32.0))
    assert torch.equal(doubled[:, 0].sort().values, again[:, 0].sort().values)
    assert torch.equal(again[:, 0].sort().values, 2 * (torch.arange(32.0) - 1))


def test_in_order_again_and_again() -> None:
    stream = rows().in_order(np.array([5, 3, 39]), batch_size=2, scaling=doubling())
    first, second = flat(stream), flat(stream)
    assert first[1].tolist() == second[1].tolist() == [5, 3, 39]
    assert first[0][:, 0].tolist() == second[0][:, 0].tolist() == [8, 4, 76]
    assert [len(targets) for _, targets in stream] == [2, 1]
    assert not list(rows().in_order(np.zeros(0, np.int64), batch_size=2))


def test_fewer_samples_than_processes_are_an_error() -> None:
    with pytest.raises(ExperimentError, match="train_samples: 2 samples to train on are too few for 3 processes"):
        RowBatches(rows(), plan=np.arange(2), batch_size=8, seed=0, share=Share(0, 3))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is here")
def test_same_batches_on_a_gpu() -> None:
    on_cpu, on_gpu = (
        flat(RowBatches(rows(device=device), plan=np.arange(40), batch_size=8, seed=3, scaling=doubling(device)))
        for device in (CPU, torch.device("cuda"))
    )
    assert torch.equal(on_gpu[0].cpu(), on_cpu[0])
    assert torch.equal(on_gpu[1].cpu(), on_cpu[1])
