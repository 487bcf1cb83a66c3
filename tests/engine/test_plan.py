"""What a dry run promises."""

from __future__ import annotations

from hpo import Asha, Experiment, NoStopping, Patience
from hpo.engine.plan import Plan, expected, sketched
from tests.engine.test_study import experiment
from tests.engine.toy import TOY


def planned(made: Experiment) -> Plan:
    return expected(made, TOY)


def test_without_stopping_every_trial_trains_to_its_end() -> None:
    plan = planned(experiment(trials=10, policy=NoStopping(7)))
    assert (plan.trials, plan.epochs, plan.epochs_without_stopping) == (10, 70, 70)
    assert plan.trials_at == {1: 10, 7: 10}


def test_asha_keeps_about_a_third_at_each_rung() -> None:
    plan = planned(experiment(trials=270, policy=Asha(27)))
    assert list(plan.trials_at) == [1, 3, 9, 27]
    assert plan.trials_at[1] == 270
    # The count rule keeps a third on average; 90 +- 5 standard deviations of a binomial, and the early ones.
    assert 50 < plan.trials_at[3] < 135
    assert plan.trials_at[27] < plan.trials_at[9] < plan.trials_at[3]
    assert plan.epochs < plan.epochs_without_stopping / 5


def test_patience_alone_ends_nobody_who_improves() -> None:
    plan = planned(experiment(trials=3, policy=(Patience(1), NoStopping(5))))
    assert plan.epochs == 15


def test_a_configuration_says_itself_how_long_it_trains() -> None:
    plan = planned(experiment(trials=3, policy=(), fixed={"epochs": 4}))
    assert plan.epochs == 12


def test_a_sketch_of_a_large_study_has_the_mean_of_it() -> None:
    made = experiment(trials=100_000, policy=NoStopping(100))
    sketch = sketched(made, TOY)
    assert sketch.trials == 100
    assert sketch.epochs / sketch.trials == 100
    small = experiment(trials=30, policy=Asha(27))
    assert sketched(small, TOY) == planned(small)
    assert sketched(experiment(trials=100_000, policy=(), fixed={"epochs": 50_000}), TOY).trials == 4
