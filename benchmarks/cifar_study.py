"""The study that is timed on a GPU: 64 trials of a 0.56 M-parameter CNN on CIFAR-10, ASHA to 27 epochs."""

from hpo import Asha, Experiment, Maximize, PerTrial, loguniform, uniform
from hpo.training import Classification
from hpo.training.data import Cifar10
from hpo.training.models import ConvNet

experiment = Experiment(
    task=Classification(model=ConvNet, data=Cifar10()),
    space={"lr": loguniform(1e-4, 1e-1), "dropout": uniform(0.0, 0.6)},
    fixed={"batch_size": 128, "optimizer": "adam", "augment": ("crop", "flip"), "train_ratio": 0.9},
    goal=Maximize("val_accuracy"),
    trials=64,
    policy=Asha(max_epochs=27),
    per_trial=PerTrial(gpus=1),
)
