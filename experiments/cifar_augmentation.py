"""How strongly should the images of CIFAR-10 be augmented for a small CNN, beside dropout and label smoothing?

Expected: some of everything, little of each: with --quick on real images 0.475 validation accuracy for shifts of an
          eighth, rotations up to 20 degrees and a small hole, without mixing, in 13 min on two busy CPU cores (n = 1).
          Strong augmentation pays in longer training: the whole study wants a GPU.
Run:      python -m hpo.run experiments/cifar_augmentation.py --quick
"""

from hpo import Asha, Experiment, Maximize, Patience, PerTrial, choice, uniform
from hpo.training import Classification
from hpo.training.data import Cifar10, Digits
from hpo.training.models import ConvNet

experiment = Experiment(
    task=Classification(model=ConvNet, data=Cifar10(otherwise=Digits())),
    space={
        "crop": uniform(0.0, 0.25),
        "flip": choice(0.0, 0.5),
        "rotate": uniform(0.0, 20.0),
        "brightness": uniform(0.0, 0.4),
        "contrast": uniform(0.0, 0.4),
        "cutout": uniform(0.0, 0.6),
        "mixup": choice(0.0, 0.2, 1.0),
        "cutmix": choice(0.0, 1.0),
        "dropout": uniform(0.0, 0.5),
        "label_smoothing": choice(0.0, 0.1),
    },
    fixed={"batch_size": 128, "optimizer": "adam", "lr": 3e-3, "lr_schedule": "cosine", "epochs_warmup": 0.5},
    goal=Maximize("val_accuracy"),
    trials=96,
    policy=[Asha(max_epochs=54, grace=2), Patience(12)],
    per_trial=PerTrial(gpus=1),
    quick={
        "trials": 16,
        "asha.max_epochs": 9,
        "train_samples": 2000,
        "val_samples": 1000,
        "filters": (32, 32, 64, 64, 128),
    },
)
