"""Direct forces for existing models: labels from a teacher, and combined models."""

from .combine import combine, combine_files


__all__ = ["combine", "combine_files"]
