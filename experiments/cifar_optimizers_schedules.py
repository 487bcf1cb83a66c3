"""Which optimizer, with which learning rate schedule and warm-up, trains a small CNN on CIFAR-10 best?

Expected: so short a training rewards what moves fast: with --quick on real images Muon at 1e-2 comes to 0.465 in
          validation accuracy, RMSprop, SGD and Adam to 0.39 to 0.42, in 9 min on two busy CPU cores (n = 1).
          Schedules matter in longer training: the whole study wants a GPU.
Run:      python -m hpo.run experiments/cifar_optimizers_schedules.py --quick
"""

from hpo import Asha, Experiment, Maximize, Patience, PerTrial, choice, loguniform, uniform
from hpo.training import Classification
from hpo.training.data import Cifar10, Digits
from hpo.training.models import ConvNet

experiment = Experiment(
    task=Classification(model=ConvNet, data=Cifar10(otherwise=Digits())),
    space={
        "optimizer": choice("adam", "adamw", "nadam", "rmsprop", "muon", "sgd"),
        "lr": loguniform(1e-4, 3e-1),
        "momentum": uniform(0.8, 0.98).when(optimizer="sgd"),
        "weight_decay": loguniform(1e-6, 1e-1),
        "lr_schedule": choice("constant", "cosine", "onecycle", "step", "polynomial"),
        "step_size": choice(3, 6, 9).when(lr_schedule="step"),
        "power": uniform(0.5, 2.0).when(lr_schedule="polynomial"),
        "epochs_warmup": choice(0.0, 0.5, 1.0),
    },
    fixed={"batch_size": 128, "augment": ("crop", "flip"), "grad_clip": 5.0},
    goal=Maximize("val_accuracy"),
    trials=96,
    policy=[Asha(max_epochs=27), Patience(9)],
    per_trial=PerTrial(gpus=1),
    quick={
        "trials": 24,
        "asha.max_epochs": 9,
        "train_samples": 2000,
        "val_samples": 1000,
        "filters": (32, 32, 64, 64, 128),
    },
)
