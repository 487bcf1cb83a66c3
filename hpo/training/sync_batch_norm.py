"""Batch norm over a batch that several processes share."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def synchronised(model: nn.Module, *, device: torch.device) -> nn.Module:
    """The model with its batch norms taking the mean and variance of the whole batch; names and values stay.

    On a GPU they are PyTorch's own, which know no CPU; there it is `CpuSyncBatchNorm`.
    """
    if device.type != "cpu":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return converted
    if isinstance(model, _BatchNorm):
        return CpuSyncBatchNorm.of(model)
    for name, child in model.named_children():
        setattr(model, name, synchronised(child, device=device))
    return model


class CpuSyncBatchNorm(_BatchNorm):
    """What `torch.nn.SyncBatchNorm` does, on CPUs: in training, statistics are those of all processes' samples."""

    @classmethod
    def of(cls, norm: _BatchNorm) -> CpuSyncBatchNorm:
        """One with the parameters, buffers and settings of `norm`, which is not to be used any more."""
        made = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        made._parameters, made._buffers = norm._parameters, norm._buffers
        return made.train(norm.training)

    def forward(self, inputs: Tensor) -> Tensor:
        """The inputs (N, C, ...), normalised for each of the C channels."""
        if not self.training:
            return super().forward(inputs)
        dims = [0, *range(2, inputs.dim())]
        shape = [1, -1] + [1] * (inputs.dim() - 2)
        values = inputs.float()
        num = values.new_full((1,), values.numel() / values.shape[1])
        sums = _sum_over_processes(torch.cat([values.sum(dims), num]))
        total = sums[-1]
        mean = sums[:-1] / total
        centred = values - mean.view(shape)
        var = _sum_over_processes(centred.square().sum(dims)) / total
        self._follow(mean.detach(), (var * total / (total - 1)).detach())
        normalised = centred * torch.rsqrt(var + self.eps).view(shape)
        if self.affine:
            normalised = normalised * self.weight.view(shape) + self.bias.view(shape)
        return normalised.to(inputs.dtype)

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 - PyTorch's name
        if input.dim() < 2:
            raise ValueError(f"batch norm takes inputs of 2 dimensions or more, not {input.dim()}")

    @torch.no_grad()
    def _follow(self, mean: Tensor, var: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(var.to(self.running_var.dtype), share)


class _SumOverProcesses(torch.autograd.Function):
    """Each process's loss depends on the sum, so the gradient of each summand is the sum of all their gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:  # noqa: ARG004 - PyTorch's signature
        summed = values.contiguous().clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ARG004 - PyTorch's signature
        summed = gradients[0].contiguous().clone()
        dist.all_reduce(summed)
        return summed


def _sum_over_processes(values: Tensor) -> Tensor:
    summed: Tensor = _SumOverProcesses.apply(values)
    return summed
