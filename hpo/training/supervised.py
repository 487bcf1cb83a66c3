"""Tasks that learn from labelled samples: what they have in common, whatever the data and the loss."""

from __future__ import annotations

import functools
import inspect
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hpo.declared import described
from hpo.errors import ExperimentError
from hpo.protocols import Dataset, Setting, Task, Trainer
from hpo.training import distributed, schedules, watch
from hpo.training.capturable import CAPTURABLE, Capturable, Uncapturable
from hpo.training.distributed import Team
from hpo.training.fine_tuning import FineTuning, FineTuningSettings
from hpo.training.learning import Learning, Recipe
from hpo.training.learning_rate import LearningRate
from hpo.training.optimizers import OPTIMIZERS, state_bytes_per_parameter_byte
from hpo.training.optimizers import RULES as OPTIMIZER_RULES
from hpo.training.randomness import left_as_found
from hpo.training.routing import Part, Routed, Routing
from hpo.training.rules import Rule
from hpo.training.schedules import Schedule
from hpo.training.settings import ChunkSettings, DataSettings, LoopSettings, StartSettings
from hpo.training.share import Share
from hpo.training.start_weights import check_offered
from hpo.training.trainer import ModelTrainer
from hpo.trial import Config

_PROCESS_STATE_MB = 0.02
_SOME_EPOCHS, _SOME_BATCHES = 1000, 100


@dataclass(frozen=True)
class SupervisedTask(Task, Learning):
    """A model that is trained on labelled samples by an optimizer of PyTorch.

    A subclass says what its data are, what it minimises and what it measures. Hyper-parameters reach whoever names
    them: the keyword arguments of `model` and of `loss`, those of the chosen `optimizer`, the fields of
    `data_settings`, `LoopSettings`, `FineTuningSettings` and `StartSettings`.

    Args:
        model: A `torch.nn.Module` class or a function that returns a module. What it names of `gives` it gets from
            the data; its other arguments are hyper-parameters. An attribute `rules` of it (`hpo.training.rules`)
            may say what they must be.
        lr_schedules: Further schedules, by the name that `lr_schedule` then may have: functions that return the rate,
            of the hyper-parameter `lr` and a `hpo.training.schedules.Moment`; their keyword-only arguments are
            hyper-parameters.
    """

    several_workers = True
    can_start_from = True

    model: Callable[..., nn.Module]
    lr_schedules: Mapping[str, Callable[..., float]] = field(default_factory=dict, kw_only=True)

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
        parts = ("val_", "val_new_") if self.grows else ("val_",)
        return trained + tuple(f"{part}{name}" for part in parts for name in self.measures)

    @property
    def grows(self) -> bool:
        return issubclass(self.data_settings, ChunkSettings)

    def num_epochs(self, config: Config, dataset: Dataset) -> int | None:
        arguments = self._routing.route(config).arguments
        settings, num_chunks = self.data_settings(**arguments["data"]), self.num_chunks(dataset)
        if isinstance(settings, ChunkSettings) and num_chunks is not None:
            return num_chunks * settings.epochs_per_chunk
        return LoopSettings(**arguments["loop"]).epochs

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
        schedules.schedules(self.lr_schedules)

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
        FineTuningSettings(**routed.arguments["fine_tuning"])
        check_offered(StartSettings(**routed.arguments["start"]), self.model)
        loop = LoopSettings(**routed.arguments["loop"])
        watch.check(loop, measures=self.measures)
        data = self.data_settings(**routed.arguments["data"])
        chunks = data if isinstance(data, ChunkSettings) else None
        if chunks is not None and loop.epochs is not None:
            raise ExperimentError(
                f"{loop.epochs} epochs are given, but the data grow: a trial ends when it has had all chunks",
                where="epochs",
                remedy=f"leave it out; epochs_per_chunk={chunks.epochs_per_chunk} says how long it trains on each",
            )
        epochs = loop.epochs or _SOME_EPOCHS  # who knows: perhaps a policy says
        LearningRate(self._schedule(routed)("max"), loop, epochs=epochs, chunks=chunks).of_epoch(1.0, 0, num_batches=1)

    def check_on(self, config: Config, dataset: Dataset) -> None:
        recipe = self.recipe(config, self.given_by(dataset))
        if recipe.tunes and (model := _on_meta(recipe)) is not None:
            FineTuning(model, recipe.fine_tuning, recipe.chunks)

    def check_workers(self, config: Config, *, workers: int) -> None:
        loop = LoopSettings(**self._routing.route(config).arguments["loop"])
        Team(Share(0, workers)).check_batch_size(loop.batch_size)

    def begin(self, setting: Setting) -> Trainer:
        return ModelTrainer(self, setting)

    def host(self, at: str) -> str:
        return distributed.host(at)

    def checkpoint_mb(self, config: Config, dataset: Dataset) -> float:
        routed = self._routing.route(config)
        recipe = self._recipe(routed, self.given_by(dataset))
        model = _on_meta(recipe)
        if model is None:
            with left_as_found(torch.device("cpu")):
                model = recipe.model()
        weights: int = sum(value.nbytes for value in model.state_dict().values())
        trained: int = sum(value.nbytes for value in _trained_last(model, recipe))
        ratio = state_bytes_per_parameter_byte(OPTIMIZERS[routed.chosen["optimizer"]], routed.arguments["optimizer"])
        copies = 3 if routed.arguments["loop"].get("ema") else 2  # the current, the best, and their average
        return (copies * weights + ratio * trained) / 2**20 + _PROCESS_STATE_MB

    def learning_rates(self, config: Config, dataset: Dataset, *, max_steps: int | None) -> list[list[float]]:
        routed = self._routing.route(config)
        recipe = self._recipe(routed, self.given_by(dataset))
        data, loop = recipe.data, recipe.loop
        num_samples = int(dataset.located.get("num_train", _SOME_BATCHES * loop.batch_size) * data.train_ratio)
        num_samples = min(num_samples, data.train_samples or num_samples) // (self.num_chunks(dataset) or 1)
        limits = (self.num_epochs(config, dataset), max_steps)
        epochs = min((limit for limit in limits if limit is not None), default=_SOME_EPOCHS)
        rate = LearningRate(recipe.schedule("max"), loop, epochs=epochs, chunks=recipe.chunks)
        lr = recipe.optimizer([nn.Parameter(torch.zeros(1))]).param_groups[0]["lr"]
        num_batches = max(num_samples // loop.batch_size, 1)
        return [rate.of_epoch(lr, epoch, num_batches=num_batches) for epoch in range(epochs)]

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
            schedule=self._schedule(routed),
            data=self.data_settings(**arguments["data"]),
            loop=LoopSettings(**arguments["loop"]),
            fine_tuning=FineTuningSettings(**arguments["fine_tuning"]),
            start=StartSettings(**arguments["start"]),
        )

    def _schedule(self, routed: Routed) -> Callable[[str], Schedule]:
        make = schedules.schedules(self.lr_schedules)[routed.chosen["lr_schedule"]]
        return lambda mode: schedules.begin(make, routed.arguments["lr_schedule"], mode=mode)

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
                Part.of("fine_tuning", FineTuningSettings, rules=FineTuningSettings.rules),
                Part.of("start", StartSettings, rules=StartSettings.rules),
            ),
            chosen={
                "optimizer": {
                    name: Part.of("optimizer", make, shown=name, rules=OPTIMIZER_RULES, given=("parameters",))
                    for name, make in OPTIMIZERS.items()
                },
                "lr_schedule": {
                    name: Part.of("lr_schedule", make, shown=name, rules=schedules.RULES, given=_of_a_schedule(make))
                    for name, make in schedules.schedules(self.lr_schedules).items()
                },
            },
            defaults={"optimizer": "adam", "lr_schedule": "constant"},
        )


def _on_meta(recipe: Recipe) -> nn.Module | None:
    """The model without memory; None where its constructor does what needs real tensors."""
    try:
        with torch.device("meta"):
            return recipe.model()
    except Exception:  # noqa: BLE001 - whatever it does
        return None


def _trained_last(model: nn.Module, recipe: Recipe) -> list[nn.Parameter]:
    """The parameters that train in the trial's last epoch."""
    if not recipe.tunes:
        return [parameter for parameter in model.parameters() if parameter.requires_grad]
    names = FineTuning(model, recipe.fine_tuning, recipe.chunks).trained((recipe.loop.epochs or _SOME_EPOCHS) - 1)
    return [parameter for name, parameter in model.named_parameters() if name in names]


def _of_a_schedule(make: Callable[..., Any]) -> list[str]:
    """What a schedule is given, by whatever name it has it."""
    return [p.name for p in inspect.signature(make).parameters.values() if p.kind is not p.KEYWORD_ONLY]


def _optimizer(routed: Routed) -> functools.partial[torch.optim.Optimizer]:
    return functools.partial(OPTIMIZERS[routed.chosen["optimizer"]], **routed.arguments["optimizer"])


def _capturable(name: str, settings: Mapping[str, Any], parameters: list[Any]) -> Capturable:
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
