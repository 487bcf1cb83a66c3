"""What happens to gradients before an optimizer step and to weights after it, in tensors that stay where they are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from hpo.training.settings import LoopSettings

Number = float | Tensor


def numbers(loop: LoopSettings) -> dict[str, float]:
    """What an update of these settings does, and how much: a step that does the same serves all values."""
    amounts = {"l1": loop.l1, "grad_clip": loop.grad_clip, "ema": loop.ema}
    return {name: amount for name, amount in amounts.items() if amount}


@torch.no_grad()
def change_gradients(parameters: Iterable[nn.Parameter], amounts: Mapping[str, Number]) -> None:
    """Add the gradient of `l1`, then scale all down to the norm `grad_clip`, as far as `amounts` names them.

    What is clipped is what `torch.nn.utils.clip_grad_norm_` clips: the norm of all gradients as one vector.
    """
    if not amounts.keys() & {"l1", "grad_clip"}:
        return
    trained = [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]
    weights: list[Tensor] = [weight for weight, _ in trained]
    grads = [grad for _, grad in trained]
    if not grads:
        return
    if "l1" in amounts:
        torch._foreach_add_(grads, torch._foreach_mul(torch._foreach_sign(weights), amounts["l1"]))
    if "grad_clip" in amounts:
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        torch._foreach_mul_(grads, (amounts["grad_clip"] / (norm + 1e-6)).clamp(max=1.0))


class Average:
    """A moving average of a model's parameters; its buffers are the model's.

    It is that of `torch.optim.swa_utils.AveragedModel` with `get_ema_multi_avg_fn`: the first update copies.

    Args:
        model: On its device.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._weights: dict[str, Tensor] = dict(model.named_parameters())
        self._averages = {name: weight.detach().clone() for name, weight in self._weights.items()}
        self._num = torch.zeros((), device=next(iter(self._averages.values())).device)

    @property
    def tensors(self) -> list[Tensor]:
        """All that an update changes."""
        return [*self._averages.values(), self._num]

    @torch.no_grad()
    def begin(self) -> None:
        """Forget all updates."""
        self._num.zero_()
        torch._foreach_copy_(list(self._averages.values()), list(self._weights.values()))

    @torch.no_grad()
    def update(self, decay: Number) -> None:
        """Go towards the model's weights."""
        kept = decay * self._num.clamp(max=1.0)
        averages = list(self._averages.values())
        torch._foreach_mul_(averages, kept)
        torch._foreach_add_(averages, torch._foreach_mul(list(self._weights.values()), 1 - kept))
        self._num.add_(1)

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """The model has the average for its parameters."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        averages, weights = list(self._averages.values()), list(self._weights.values())
        kept = [weight.clone() for weight in weights]
        torch._foreach_copy_(weights, averages)
        torch._foreach_copy_(averages, kept)

    def weights(self) -> dict[str, Tensor]:
        """The average, by the names of the parameters."""
        return self._averages

    def state(self) -> dict[str, Tensor]:
        """From which `restore` goes on."""
        return {**self._averages, "num updates": self._num}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on where `state` was taken.

        Raises:
            KeyError: It is of another model.
        """
        self._num.copy_(state["num updates"])
        for name, average in self._averages.items():
            average.copy_(state[name])
