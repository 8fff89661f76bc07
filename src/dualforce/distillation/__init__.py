"""Direct forces for models that exist: labels from a teacher, and pairs of models."""

from .combine import combine, combine_files
from .forces import TeacherAndStudent


__all__ = ["TeacherAndStudent", "combine", "combine_files"]
