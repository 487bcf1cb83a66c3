"""The small study that `chaos.py` kills: real digits, a small network, a checkpoint after every epoch."""

from hpo import Asha, Experiment, Maximize, Patience, PerTrial, loguniform, uniform
from hpo.training import Classification
from hpo.training.data import Digits
from hpo.training.models import Mlp

experiment = Experiment(
    task=Classification(model=Mlp, data=Digits()),
    space={"lr": loguniform(1e-4, 1.0), "dropout": uniform(0.0, 0.6)},
    fixed={"batch_size": 64},
    goal=Maximize("val_accuracy"),
    trials=40,
    policy=[Asha(max_epochs=27), Patience(5)],
    per_trial=PerTrial(gpus=0),
    checkpoint_every_s=0.0,
    max_failures=5,
)
