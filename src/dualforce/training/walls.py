"""Where walls start: below the shortest distances of the training data."""

from collections.abc import Sequence

import numpy as np
import torch
from ase.data import covalent_radii
from metatomic.torch import unit_conversion_factor
from torch import Tensor

from .data import Frame
from .model import DualForce
from .pair_fit import edge_vectors


BELOW = 0.96
"""A wall starts at this share of the shortest distance. Twice as hot, distances of
bonded atoms fall two to three per cent below those of the data, and predictions there
are still good."""

UNSEEN = 0.7
"""A wall between elements that are never neighbours starts at this share of the sum of
their covalent radii."""

WITHIN = 0.9
"""At this share of the cutoff at most."""


def shortest_distances(model: DualForce, frames: Sequence[Frame]) -> Tensor:
    """Shortest distance of each pair of elements.

    :param model: the model, which knows the atomic types.
    :param frames: frames.
    :return: by atomic numbers of both atoms, infinite where they are never neighbours.
    """
    size = max(model.atomic_types) + 1
    shortest = np.full((size, size), np.inf)
    for frame in frames:
        lengths = torch.linalg.vector_norm(edge_vectors(frame), dim=1).numpy()
        pair = frame.types[frame.centers], frame.types[frame.neighbors]
        np.minimum.at(shortest, (pair[0].numpy(), pair[1].numpy()), lengths)
    return torch.from_numpy(np.minimum(shortest, shortest.T))


def _without_data(model: DualForce) -> Tensor:
    """Starts of walls between elements that are never neighbours."""
    unit = model.dataset_info.length_unit or "angstrom"
    cutoff = model.backbone.requested_neighbor_lists()[0].cutoff
    starts = torch.zeros_like(model.backbone.wall.starts, dtype=torch.float64).cpu()
    radii = UNSEEN * unit_conversion_factor("angstrom", unit) * covalent_radii
    for i in model.atomic_types:
        for j in model.atomic_types:
            starts[i, j] = min(WITHIN * cutoff, radii[i] + radii[j])
    return starts


def set_up_wall(model: DualForce, frames: Sequence[Frame]) -> None:
    """Let the wall of each pair of elements start below the shortest distance.

    A wall that a model has from earlier data is lowered where the new ones have shorter
    distances, and never raised.

    :param model: the model, which is changed.
    :param frames: training frames.
    """
    shortest = shortest_distances(model, frames)
    seen, before = torch.isfinite(shortest), model.backbone.wall.starts.cpu().double()
    starts = torch.where(seen, BELOW * shortest, _without_data(model))
    lower = torch.where(seen, torch.minimum(before, starts), before)
    model.set_wall(torch.where(before > 0.0, lower, starts))
