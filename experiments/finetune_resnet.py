"""What of a ResNet-18 that knows six classes of CIFAR-10 should train, and how fast, to learn the other four from 500?

Expected: with --quick on real images, and the weights of pretrain_resnet --quick, 0.70 validation accuracy within four
          epochs, the first three blocks frozen at first and one thawed an epoch, in 4 min on two busy CPU cores; 0.61
          with all but the head frozen at first; 0.65 without the weights (--set start_from=None --set freeze=None);
          n = 1.
Run:      python -m hpo.run experiments/pretrain_resnet.py --quick
          python -m hpo.run experiments/finetune_resnet.py --quick

Without the first command there is nothing to begin with, and the second one says so; `--smoke` does without. With
`--set start_from=torchvision:DEFAULT --set freeze=None` trials begin with ImageNet's weights.
"""

from pretrain_resnet import SomeClasses

from hpo import Asha, Best, Experiment, Maximize, PerTrial, choice, loguniform, uniform
from hpo.training import Classification
from hpo.training.data import Cifar10, Digits
from hpo.training.models import TorchvisionModel

experiment = Experiment(
    task=Classification(
        model=TorchvisionModel("resnet18", small_images="on"),
        data=SomeClasses(Cifar10(otherwise=Digits()), labels=(6, 7, 8, 9)),
    ),
    space={
        "lr": loguniform(1e-4, 1e-2),
        "freeze": choice(None, 3, -1),
        "unfreeze_every": choice(None, 1).when(freeze=[3, -1]),
        "lr_decay_per_block": uniform(0.3, 1.0),
        "head_lr_factor": loguniform(1.0, 10.0),
    },
    fixed={
        "start_from": Best("pretrain_resnet"),
        "partial": True,
        "batch_size": 32,
        "optimizer": "adamw",
        "augment": ("crop", "flip"),
        "train_samples": 500,
    },
    goal=Maximize("val_accuracy"),
    trials=64,
    policy=Asha(max_epochs=27),
    per_trial=PerTrial(gpus=0.25),
    quick={"trials": 8, "asha.max_epochs": 4, "val_samples": 500},
)
