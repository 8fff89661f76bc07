"""The architecture that metatrain loads: model, trainer, options."""

from .model import DualForce
from .trainer import Trainer


__model__ = DualForce
__trainer__ = Trainer

__authors__ = [("dualforce developers", "")]
__maintainers__ = [("dualforce developers", "")]
