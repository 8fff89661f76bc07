"""Installed as ``metatrain.experimental.dualforce``, where metatrain looks for it."""

from dualforce.architecture import (
    __authors__,
    __maintainers__,
    __model__,
    __trainer__,
)
from dualforce.architecture.hooks import install


install()

__all__ = ["__authors__", "__maintainers__", "__model__", "__trainer__"]
