"""Networks that predict energies and direct forces of atoms."""

from typing import Any, List, Mapping

from .ace import ACE
from .base import Backbone, Graph, edge_vectors, system_edges
from .metatrain import NAMES as METATRAIN_NAMES
from .metatrain import MetatrainBackbone
from .painn import PaiNN


NAMES = ("ace", "painn", *METATRAIN_NAMES)
"""Values of the ``backbone`` option."""


def make_backbone(
    hypers: Mapping[str, Any], atomic_types: List[int], length_unit: str
) -> Backbone:
    """Build the network that model hypers ask for.

    :param hypers: model hypers; those of the network stand under its own name.
    :param atomic_types: atomic numbers the network knows.
    :param length_unit: length unit of the data.
    :raises ValueError: if there is no such backbone.
    """
    name = hypers["backbone"]
    if name == "painn":
        return PaiNN(hypers[name], atomic_types)
    if name == "ace":
        return ACE(hypers[name], atomic_types)
    if name in METATRAIN_NAMES:
        return MetatrainBackbone(name, hypers[name], atomic_types, length_unit)
    raise ValueError(f"unknown backbone '{name}', choose one of {', '.join(NAMES)}")


__all__ = [
    "NAMES",
    "Backbone",
    "Graph",
    "edge_vectors",
    "make_backbone",
    "system_edges",
]
