"""Which filters, depth, kernel, pooling, norm, activation and initialisation suit a small CNN on CIFAR-10?

Expected: batch norm, max pooling and SiLU come first: 0.446 validation accuracy with --quick on real images, in
          6 min on two busy CPU cores (n = 1). Without a norm nothing comes near. The whole study wants a GPU.
Run:      python -m hpo.run experiments/cifar_architecture.py --quick
"""

from hpo import Asha, Experiment, Maximize, Patience, PerTrial, choice, loguniform, randint
from hpo.training import Classification
from hpo.training.data import Cifar10, Digits
from hpo.training.models import ConvNet

experiment = Experiment(
    task=Classification(model=ConvNet, data=Cifar10(otherwise=Digits())),
    space={
        "filters": choice(16, 32, 64),
        "depth": randint(3, 7),
        "kernel_size": choice(3, 5),
        "pooling": choice("max", "avg"),
        "norm": choice("batch", "group", "none"),
        "activation": choice("relu", "leaky_relu", "gelu", "silu"),
        "init": choice("default", "kaiming_normal", "xavier_uniform", "orthogonal"),
        "lr": loguniform(1e-4, 1e-2),
    },
    fixed={"batch_size": 128, "optimizer": "adam", "augment": ("crop", "flip"), "grad_clip": 5.0},
    goal=Maximize("val_accuracy"),
    trials=96,
    policy=[Asha(max_epochs=27), Patience(6)],
    per_trial=PerTrial(gpus=1),
    quick={"trials": 16, "asha.max_epochs": 9, "train_samples": 2000, "val_samples": 1000, "filters": 16},
)
