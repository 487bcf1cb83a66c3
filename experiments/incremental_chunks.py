"""How is a small CNN fine-tuned best when CIFAR-10 arrives in five pieces, and most of the old ones is gone each time?

Expected: some epochs for each piece and a low learning rate: with --quick on real images 0.472 validation accuracy for
          0.0014, four epochs a piece, and 0.8 times as much replayed; 0.448 for 0.0028 and 0.2 times as much, in 6 min
          50 s on two busy CPU cores (n = 1, 500 held out). The whole study wants a GPU.
Run:      python -m hpo.run experiments/incremental_chunks.py --quick
"""

from hpo import Asha, Experiment, Maximize, PerTrial, choice, loguniform, uniform
from hpo.training import Classification
from hpo.training.data import Cifar10, Digits
from hpo.training.models import ConvNet

experiment = Experiment(
    task=Classification(
        model=ConvNet, data=Cifar10(otherwise=Digits()).in_chunks(5, by="random", mode="replace", replay=0.2)
    ),
    space={
        "lr": loguniform(3e-4, 3e-2),
        "replay": uniform(0.0, 1.0),
        "epochs_per_chunk": choice(1, 2, 4),
        "chunk_lr_decay": uniform(0.3, 1.0),
        "chunk_rewarm": choice(True, False),
        "chunk_freeze": choice(None, 1, 2),
    },
    fixed={"batch_size": 64, "optimizer": "adam", "augment": ("crop", "flip"), "lr_schedule": "cosine"},
    goal=Maximize("val_accuracy"),  # on what is held out of all pieces so far; val_old_accuracy tells what is forgotten
    trials=48,
    policy=Asha(5, resource="chunk"),
    per_trial=PerTrial(gpus=1),
    quick={
        "trials": 16,
        "train_samples": 2500,
        "val_samples": 500,
        "filters": (32, 32, 64, 64, 128),
    },
)
