"""Installed as ``metatrain.experimental.dualforce``, where metatrain looks for it."""

from dualforce.architecture import (
    __authors__,
    __maintainers__,
    __model__,
    __trainer__,
)
from dualforce.architecture.hooks import install
from dualforce.distillation.training import install as install_teachers


install()
install_teachers()

__all__ = ["__authors__", "__maintainers__", "__model__", "__trainer__"]
