"""Networks to begin with; any other `torch.nn.Module` class, or function that returns one, will do as well."""

from hpo.training.models.conv_net import ConvNet
from hpo.training.models.dropout import Dropout
from hpo.training.models.mlp import Mlp
from hpo.training.models.torchvision_model import TorchvisionModel

__all__ = ["ConvNet", "Dropout", "Mlp", "TorchvisionModel"]
