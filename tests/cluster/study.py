"""The study that the pretended hosts run: it has no torch, so that many hosts' processes begin on few cores."""

from toy import Toy

from hpo import Asha, Experiment, Maximize, PerTrial, uniform

experiment = Experiment(
    task=Toy(),
    space={"x": uniform(0, 1)},
    fixed={"sleep_s": 0.3},
    goal=Maximize("score"),
    trials=12,
    policy=Asha(max_epochs=9),
    per_trial=PerTrial(gpus=0),
    checkpoint_every_s=0.0,
    max_failures=5,
)
