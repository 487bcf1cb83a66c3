"""Tasks that learn from labelled samples: what they have in common, whatever the data and the loss."""

from __future__ import annotations

import functools
import inspect
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hpo.errors import ExperimentError
from hpo.protocols import Dataset, Setting, Task, Trainer, described
from hpo.training.capturable import CAPTURABLE, Capturable, Uncapturable
from hpo.training.learning import Learning, Recipe
from hpo.training.optimizers import OPTIMIZERS, state_bytes_per_parameter_byte
from hpo.training.optimizers import RULES as OPTIMIZER_RULES
from hpo.training.randomness import left_as_found
from hpo.training.routing import Part, Routed, Routing
from hpo.training.rules import Rule
from hpo.training.settings import DataSettings, LoopSettings
from hpo.training.trainer import ModelTrainer
from hpo.trial import Config

_PROCESS_STATE_MB = 0.02


@dataclass(frozen=True)
class SupervisedTask(Task, Learning):
    """A model that is trained on labelled samples by an optimizer of PyTorch.

    A subclass says what its data are, what it minimises and what it measures. Hyper-parameters reach whoever names
    them: the keyword arguments of `model` and of `loss`, those of the chosen `optimizer`, the fields of `data_settings`
    and of `LoopSettings`.

    Args:
        model: A `torch.nn.Module` class or a function that returns a module. What it names of `gives` it gets from
            the data; its other arguments are hyper-parameters. An attribute `rules` of it (`hpo.training.rules`)
            may say what they must be.
    """

    model: Callable[..., nn.Module]

    @property
    @abstractmethod
    def gives(self) -> tuple[str, ...]:
        """Names of the arguments that the data give a model and the loss, if they ask for them."""

    @property
    @abstractmethod
    def loss_rules(self) -> Mapping[str, Rule]:
        """What the keyword arguments of `loss` must be."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor, *args: Any, **settings: Any) -> Tensor:
        """Mean loss of a batch; its keyword arguments are hyper-parameters, and what `gives` names.

        Samples that are not trained on are measured with their defaults.
        """

    @property
    def loss_numbers(self) -> tuple[str, ...]:
        """Keyword arguments of `loss` that it takes as tensors () on the device, too.

        A step that was captured as a CUDA graph then serves all of their values; it is captured anew for another
        value of any other argument.
        """
        return ()

    @property
    def data_settings(self) -> type[DataSettings]:
        """Whose fields are the hyper-parameters of the data."""
        return DataSettings

    @abstractmethod
    def given_by(self, dataset: Dataset) -> Mapping[str, Any]:
        """Values for `gives`, known before the data are opened."""

    # --- Task ---

    @property
    def metrics(self) -> tuple[str, ...]:
        trained = tuple(f"train_{name}" for name in self.train_measures)
        return trained + tuple(f"val_{name}" for name in self.measures)

    def check(self) -> None:
        if not callable(self.model) or isinstance(self.model, nn.Module):
            raise ExperimentError(
                f"{_short(self.model)} is not something that builds a model",
                where="model",
                remedy="give the class or a function, not what it returns: model=ConvNet",
            )
        try:
            inspect.signature(self.model)
        except (TypeError, ValueError):
            raise ExperimentError(
                f"{_short(self.model)} does not say which arguments it takes",
                where="model",
                remedy="wrap it in a function that names them",
            ) from None

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "model": _described_model(self.model)}

    def check_config(self, config: Config) -> None:
        routed = self._routing.route(config)
        try:
            _optimizer(routed)([nn.Parameter(torch.zeros(1))])
        except (ValueError, TypeError) as error:
            raise ExperimentError(
                f"{routed.chosen['optimizer']} refuses its settings: {error}",
                where="optimizer",
                remedy=f"given were {dict(routed.arguments['optimizer'])!r}",
            ) from None

    def begin(self, setting: Setting) -> Trainer:
        return ModelTrainer(self, setting)

    def checkpoint_mb(self, config: Config, dataset: Dataset) -> float:
        routed = self._routing.route(config)
        build = self._recipe(routed, self.given_by(dataset)).model
        try:
            with torch.device("meta"):
                model = build()
        except Exception:  # noqa: BLE001 - a model may do in its constructor what needs real tensors
            with left_as_found(torch.device("cpu")):
                model = build()
        weights: int = sum(value.nbytes for value in model.state_dict().values())
        trained: int = sum(value.nbytes for value in model.parameters() if value.requires_grad)
        ratio = state_bytes_per_parameter_byte(OPTIMIZERS[routed.chosen["optimizer"]], routed.arguments["optimizer"])
        return (2 * weights + ratio * trained) / 2**20 + _PROCESS_STATE_MB  # twice: the current and the best

    # --- Learning ---

    def recipe(self, config: Config, given: Mapping[str, Any]) -> Recipe:
        return self._recipe(self._routing.route(config), given)

    def _recipe(self, routed: Routed, given: Mapping[str, Any]) -> Recipe:
        arguments = routed.arguments
        asked = self._given_to("loss", given)
        settings = dict(arguments["loss"])
        numbers = {name: settings.pop(name) for name in self.loss_numbers if name in settings}
        optimizer = routed.chosen["optimizer"]
        return Recipe(
            model=functools.partial(self.model, **self._given_to("model", given), **arguments["model"]),
            optimizer=_optimizer(routed),
            capturable=functools.partial(_capturable, optimizer, arguments["optimizer"]),
            loss=functools.partial(self.loss, **asked, **settings),
            loss_numbers=numbers,
            loss_settings={**asked, **settings},
            measured_loss=functools.partial(self.loss, **asked),
            data=self.data_settings(**arguments["data"]),
            loop=LoopSettings(**arguments["loop"]),
        )

    def _given_to(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        part = next(part for part in self._routing.parts if part.name == name)
        return {asked: given[asked] for asked in part.given if asked in given}

    @functools.cached_property
    def _routing(self) -> Routing:
        named = self.model
        while isinstance(named, functools.partial):
            named = named.func
        shown = getattr(named, "__name__", type(named).__name__)
        rules = getattr(named, "rules", None)
        return Routing(
            parts=(
                Part.of("model", self.model, shown=shown, rules=rules, given=self.gives),
                Part.of("loss", self.loss, rules=self.loss_rules, given=("outputs", "targets", *self.gives)),
                Part.of("data", self.data_settings, rules=self.data_settings.rules),
                Part.of("loop", LoopSettings, rules=LoopSettings.rules),
            ),
            chosen={
                "optimizer": {
                    name: Part.of("optimizer", make, shown=name, rules=OPTIMIZER_RULES, given=("parameters",))
                    for name, make in OPTIMIZERS.items()
                }
            },
            defaults={"optimizer": "adam"},
        )


def _optimizer(routed: Routed) -> functools.partial[torch.optim.Optimizer]:
    return functools.partial(OPTIMIZERS[routed.chosen["optimizer"]], **routed.arguments["optimizer"])


def _capturable(name: str, settings: Mapping[str, Any], parameters: list[nn.Parameter]) -> Capturable:
    if name not in CAPTURABLE:
        raise Uncapturable(f"the optimizer {name!r} reads its numbers on the host")
    return CAPTURABLE[name](parameters, **settings)


def _described_model(model: Callable[..., nn.Module]) -> Any:
    """JSON of the model: a partial differs from another by its arguments, too."""
    if isinstance(model, functools.partial):
        return {
            "partial": _described_model(model.func),
            "args": described(model.args),
            "keywords": described(model.keywords),
        }
    return described(model)


def _short(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
