from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import pytest

from hpo.errors import ExperimentError
from hpo.training.optimizers import OPTIMIZERS, RULES
from hpo.training.routing import Part, Routing
from hpo.training.rules import number


class Net:
    def __init__(
        self,
        num_classes: int,
        *,
        width: int,
        dropout: float = 0.0,
        momentum: float = 0.1,
        name: str = "net",
        bias: bool = True,
        filters: tuple[int, ...] = (),
    ) -> None: ...


@dataclass
class Loop:
    batch_size: int = 128


def routing(model: Any = Net) -> Routing:
    return Routing(
        parts=(
            Part.of(
                "model", model, shown="Net", rules={"dropout": number(0.3, least=0, below=1)}, given=("num_classes",)
            ),
            Part.of("loop", Loop),
        ),
        chosen={
            "optimizer": {
                name: Part.of("optimizer", make, shown=name, rules=RULES, given=("parameters",))
                for name, make in OPTIMIZERS.items()
            }
        },
        defaults={"optimizer": "adam"},
    )


WIDTH = {"width": 8}


def test_each_value_reaches_the_part_that_names_it() -> None:
    routed = routing().route({"lr": 0.1, "width": 8, "dropout": 0.5, "batch_size": 32, "optimizer": "adamw"})
    assert routed.chosen == {"optimizer": "adamw"}
    assert routed.arguments == {
        "model": {"width": 8, "dropout": 0.5},
        "loop": {"batch_size": 32},
        "optimizer": {"lr": 0.1},
    }


def test_an_optimizer_need_not_be_chosen() -> None:
    assert routing().route(WIDTH).chosen == {"optimizer": "adam"}


def test_qualified_names_reach_their_part() -> None:
    routed = routing().route({**WIDTH, "optimizer": "sgd", "model.momentum": 0.2, "optimizer.momentum": 0.9})
    assert routed.arguments["model"]["momentum"] == 0.2
    assert routed.arguments["optimizer"]["momentum"] == 0.9


def test_a_name_that_only_one_chosen_part_takes_needs_no_qualifier() -> None:
    assert routing().route({**WIDTH, "momentum": 0.2}).arguments["model"]["momentum"] == 0.2


def test_lists_become_tuples() -> None:
    assert routing().route({**WIDTH, "filters": [1, [2, 3]]}).arguments["model"]["filters"] == (1, (2, 3))


def test_a_partial_keeps_its_arguments_and_is_routed_like_its_function() -> None:
    assert routing(functools.partial(Net, width=4)).route({"dropout": 0.1}).arguments["model"] == {"dropout": 0.1}


def test_open_parts_take_other_names_where_they_are_qualified() -> None:
    def factory(num_classes: int, **settings: object) -> None: ...

    assert routing(factory).route({"model.depth": 3}).arguments["model"] == {"depth": 3}
    with pytest.raises(ExperimentError, match="depth: no part takes it"):
        routing(factory).route({"depth": 3})
    with pytest.raises(ExperimentError, match=r"model\.num_classes: Net gets it from the task"):
        routing(factory).route({"model.num_classes": 3})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"lrr": 0.1},
            r"lrr: no part takes it\n  did you mean 'lr'\? valid names: amsgrad, batch_size, betas, .*optimizer",
        ),
        ({"zzzzzz": 0.1}, r"zzzzzz: no part takes it\n  valid names: "),
        ({"modell.dropout": 0.1}, r"modell\.dropout: no part takes it"),
        ({"model.lr": 0.1}, r"model\.lr: no part takes it"),
        (
            {"momentum": 0.9, "optimizer": "sgd"},
            r"momentum: Net and sgd both take it\n  say which: model\.momentum or optimizer\.momentum",
        ),
        (
            {"dampening": 0.5},
            r"dampening: optimizer='adam' does not take it; it belongs to 'sgd'\n"
            r"  let it exist only there: \.when\(optimizer='sgd'\)",
        ),
        ({"optimizer.momentum": 0.9}, r"optimizer\.momentum: optimizer='adam' does not take it; it belongs to 'sgd'"),
        (
            {"betas": (0.9, 0.99), "optimizer": "sgd"},
            r"belongs to 'adam', 'adamw', .*\n  let it exist only there: \.when\(optimizer=\['adam', 'adamw', ",
        ),
        ({"num_classes": 3}, r"num_classes: Net gets it from the task\n  leave it out"),
        ({"dropout": 0.1, "model.dropout": 0.2}, r"it is given twice: as 'dropout' and as 'model\.dropout'"),
        ({"optimizer": "adamm"}, r"optimizer: 'adamm' is not one of 'adam', 'adamw', 'sgd', .*\n  did you mean 'adam'"),
        ({"optimizer": 3}, r"optimizer: 3 is not one of"),
        ({"dropout": 1.0}, r"dropout: 1\.0 is not a number of at least 0 and below 1\n  e\.g\. dropout=0\.3"),
        ({"model.dropout": 1.0}, r"^model\.dropout: 1\.0 is not"),
        ({"lr": 0}, r"lr: 0 is not a number above 0\n  e\.g\. lr=0\.001"),
        ({"lr": float("nan")}, r"lr: nan is not a number above 0"),
        ({"lr": "0.1"}, r"lr: '0\.1' is not a number above 0"),
        ({"weight_decay": -1}, r"weight_decay: -1 is not a number of at least 0"),
        ({"betas": (0.9,)}, r"betas: \(0\.9,\) is not a tuple of 2 parts, each a number of at least 0 and below 1"),
        ({"momentum": 1.0, "optimizer.momentum": 0, "optimizer": "sgd"}, r"momentum: Net and sgd both take it"),
        ({"name": 3}, r"name: 3 is not a string"),
        ({"bias": 1}, r"bias: 1 is not True or False"),
    ],
)
def test_what_cannot_be_routed_is_named(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        routing().route({**WIDTH, **config})


def test_annotations_are_rules_where_nothing_else_is_known() -> None:
    with pytest.raises(ExperimentError, match=r"width: 0\.5 is not an integer"):
        routing().route({"width": 0.5})


def test_a_required_argument_that_nothing_gives_is_named() -> None:
    with pytest.raises(ExperimentError, match=r"width: Net needs it, and neither space nor fixed gives it\n  add it"):
        routing().route({})
