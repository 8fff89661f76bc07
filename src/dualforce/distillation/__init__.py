"""Direct forces for existing models: labels from a teacher, combined models, and the
way from one to the other in one command."""

from .acceleration import accelerate
from .combine import combine, combine_files
from .continuation import continue_acceleration
from .difference import difference
from .results import Acceleration, AccelerationError
from .sample import sample


__all__ = [
    "Acceleration",
    "AccelerationError",
    "accelerate",
    "combine",
    "combine_files",
    "continue_acceleration",
    "difference",
    "sample",
]
