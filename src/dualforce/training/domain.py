"""What the training data cover, stored in exported models for those who run them."""

import json
from collections.abc import Sequence
from typing import Any, Dict, List

import numpy as np
import torch
from ase.data import chemical_symbols
from metatomic.torch import ModelMetadata, unit_conversion_factor
from metatrain.utils.metadata import merge_metadata

from .baselines import count_atoms
from .data import Frame
from .model import DualForce
from .walls import shortest_distances


KEY = "dualforce-training-domain"
"""Name in ``ModelMetadata.extra``; :mod:`dualforce.forces.domain` reads it."""

Range = List[float]
"""The least and the greatest value."""


def record_domain(model: DualForce, frames: Sequence[Frame]) -> None:
    """Store what the training data cover in the metadata of the model, together with
    what those of earlier trainings covered.

    :param model: the model, which is changed.
    :param frames: training frames.
    """
    domain = describe_domain(model, frames)
    extra = dict(model.metadata.extra)
    if KEY in extra:
        domain = _join(json.loads(extra[KEY]), domain)
    model.metadata = merge_metadata(
        model.metadata, ModelMetadata(extra={KEY: json.dumps(domain)})
    )


def record_difference(model: DualForce, difference: Dict[str, float]) -> None:
    """Store how far conservative and direct force are apart on the validation set.

    :param model: the model, which is changed; nothing is stored where it does not know
        what its training data cover.
    :param difference: root mean squares, in eV/Å, by name of the energy.
    """
    stored = dict(model.metadata.extra).get(KEY)
    if stored is None:
        return
    domain = {**json.loads(stored), "force_difference": difference}
    model.metadata = merge_metadata(
        model.metadata, ModelMetadata(extra={KEY: json.dumps(domain)})
    )


def describe_domain(model: DualForce, frames: Sequence[Frame]) -> Dict[str, Any]:
    """What frames cover: shortest distances of pairs of elements, most neighbours of
    each element within the cutoff, densities of fully periodic frames, and shares of
    elements. In Angstrom.

    :param model: the model, which knows atomic types and units.
    :param frames: frames.
    """
    unit = model.dataset_info.length_unit or "angstrom"
    angstrom = float(unit_conversion_factor(unit, "angstrom"))
    shortest = angstrom * shortest_distances(model, frames).numpy()
    pairs = zip(*np.nonzero(np.isfinite(np.triu(shortest))), strict=True)
    counts = count_atoms(model.atomic_types, frames)
    shares = counts / counts.sum(1, keepdims=True)
    return {
        "cutoff": angstrom * model.requested_neighbor_lists()[0].cutoff,
        "shortest": {
            f"{chemical_symbols[i]}-{chemical_symbols[j]}": float(shortest[i, j])
            for i, j in pairs
            if i <= j
        },
        "neighbors": _most_neighbors(frames),
        "density": _densities(frames, angstrom),
        "composition": {
            chemical_symbols[number]: [float(column.min()), float(column.max())]
            for number, column in zip(model.atomic_types, shares.T, strict=True)
        },
    }


def _most_neighbors(frames: Sequence[Frame]) -> Dict[str, int]:
    most: Dict[str, int] = {}
    for frame in frames:
        counts = torch.bincount(frame.centers, minlength=len(frame))
        for number in frame.types.unique().tolist():
            symbol = chemical_symbols[number]
            found = int(counts[frame.types == number].max())
            most[symbol] = max(found, most.get(symbol, 0))
    return most


def _densities(frames: Sequence[Frame], angstrom: float) -> Range:
    """Atoms per volume; empty where no frame is fully periodic."""
    found = [
        len(frame) / (frame.volume * angstrom**3)
        for frame in frames
        if bool(frame.pbc.all()) and frame.volume > 0.0
    ]
    return [min(found), max(found)] if found else []


def _join(first: Dict[str, Any], second: Dict[str, Any]) -> Dict[str, Any]:
    """What either covers."""
    densities = first["density"] + second["density"]
    joined = {
        "cutoff": second["cutoff"],
        "shortest": dict(first["shortest"]),
        "neighbors": dict(first["neighbors"]),
        "density": [min(densities), max(densities)] if densities else [],
        "composition": dict(first["composition"]),
    }
    for pair, value in second["shortest"].items():
        joined["shortest"][pair] = min(value, joined["shortest"].get(pair, value))
    for symbol, value in second["neighbors"].items():
        joined["neighbors"][symbol] = max(value, joined["neighbors"].get(symbol, 0))
    for symbol, values in second["composition"].items():
        both = values + joined["composition"].get(symbol, values)
        joined["composition"][symbol] = [min(both), max(both)]
    return joined
