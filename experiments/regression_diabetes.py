"""Which learning rate, width, depth, dropout and weight decay suit scikit-learn's diabetes data, 442 patients?

Expected: a val_r2 of 0.39 is what least squares reach on the same 266 and 88 patients. The best networks come a little
          above it, whatever their width, with learning rates around 1e-2: 0.41 with --quick, in 31 s on two busy CPU
          cores (n = 1).
Run:      python -m hpo.run experiments/regression_diabetes.py --quick
"""

from hpo import Asha, Experiment, Maximize, Patience, PerTrial, choice, loguniform, uniform
from hpo.training import Regression
from hpo.training.data import SklearnTable
from hpo.training.models import Mlp

experiment = Experiment(
    task=Regression(model=Mlp, data=SklearnTable("diabetes")),
    space={
        "lr": loguniform(1e-4, 1e-1),
        "hidden": choice((8,), (32,), (128,), (32, 32), (128, 128)),
        "dropout": uniform(0.0, 0.6),
        "weight_decay": loguniform(1e-4, 1e1),
        "loss": choice("mse", "mae", "huber"),
        "huber_delta": loguniform(0.2, 2.0).when(loss="huber"),
    },
    fixed={"optimizer": "adamw", "batch_size": 32, "train_ratio": 0.75, "min_std": 1e-3},
    goal=Maximize("val_r2"),
    trials=64,
    policy=[Asha(max_epochs=81), Patience(20)],
    per_trial=PerTrial(gpus=0),
    quick={"trials": 12, "asha.max_epochs": 27},
)
