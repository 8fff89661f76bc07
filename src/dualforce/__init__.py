"""Interatomic potentials with conservative and direct forces."""

__version__ = "0.1.0"
