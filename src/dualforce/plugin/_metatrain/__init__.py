"""Installed as ``metatrain.experimental.dualforce``, where metatrain looks for it."""

from dualforce.plugin.patches import install
from dualforce.training.model import DualForce as __model__
from dualforce.training.trainer import Trainer as __trainer__


__authors__ = [("The dualforce developers <dualforce@example.org>", "@dualforce")]
__maintainers__ = [("The dualforce developers <dualforce@example.org>", "@dualforce")]

install()

__all__ = ["__authors__", "__maintainers__", "__model__", "__trainer__"]
