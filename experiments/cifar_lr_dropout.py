"""Which learning rate and dropout suit a small CNN on CIFAR-10?

Expected: with --quick on real images a learning rate between 1e-3 and 1e-2 and about 44 % validation accuracy, in
          2 min 36 s on two CPU cores (n = 1, docs/benchmarks.md). The whole study wants a GPU.
Run:      python -m hpo.run experiments/cifar_lr_dropout.py --quick
"""

from hpo import Asha, Experiment, Maximize, Patience, PerTrial, loguniform, uniform
from hpo.training import Classification
from hpo.training.data import Cifar10, Digits
from hpo.training.models import ConvNet

experiment = Experiment(
    task=Classification(model=ConvNet, data=Cifar10(otherwise=Digits())),
    space={"lr": loguniform(1e-4, 1e-1), "dropout": uniform(0.0, 0.6)},
    fixed={"batch_size": 128, "optimizer": "adam", "augment": ("crop", "flip")},
    goal=Maximize("val_accuracy"),
    trials=64,
    policy=[Asha(max_epochs=27), Patience(6)],
    per_trial=PerTrial(gpus=1),
    quick={
        "trials": 16,
        "asha.max_epochs": 9,
        "train_samples": 2000,
        "val_samples": 1000,
        "filters": (32, 32, 64, 64, 128),
    },
)
