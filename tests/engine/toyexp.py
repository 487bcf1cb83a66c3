from hpo import Asha, Experiment, Maximize, uniform
from tests.engine.toy import Toy

experiment = Experiment(task=Toy(), space={"x": uniform(0, 1)}, goal=Maximize("score"), trials=8, policy=Asha(9))
