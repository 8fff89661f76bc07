# mypy: disable-error-code=misc
# TypedDicts with default values, the way metatrain declares hyperparameters, are not
# part of the typing standard.
"""Hyperparameters of the networks."""

from typing_extensions import NotRequired, TypedDict


class PaiNNHypers(TypedDict):
    """Hyperparameters of the ``painn`` backbone."""

    cutoff: float = 4.5
    """Cutoff radius, in the length unit of the data. A message reaches this far in each
    layer; cost grows with its third power."""
    n_layers: int = 3
    """Message-passing layers."""
    n_direct_layers: NotRequired[int]
    """Layers that direct forces and stresses are read from, the first ones. Fewer than
    ``n_layers`` make them cheaper and less accurate; left out, they are read from the
    last."""
    n_channels: int = 64
    """Channels of scalar and of vector features."""
    n_radial: int = 6
    """Radial basis functions, each a learnt combination of Bessel functions."""
    n_neighbors: float = 40.0
    """Typical number of neighbours within the cutoff. Sums over neighbours are divided
    by its root; it sets the scale of untrained features and nothing else."""


class ACEHypers(TypedDict):
    """Hyperparameters of the ``ace`` backbone."""

    cutoff: float = 4.5
    """Cutoff radius, in the length unit of the data. A message reaches this far in each
    layer; cost grows with its third power."""
    n_layers: int = 2
    """Message-passing layers."""
    n_direct_layers: NotRequired[int]
    """Layers that direct forces and stresses are read from, the first ones. Fewer than
    ``n_layers`` make them cheaper and less accurate; left out, they are read from the
    last."""
    n_channels: int = 64
    """Channels of the features."""
    n_radial: int = 8
    """Radial basis functions, each a learnt combination of as many Bessel functions.
    More resolve bonds more finely, and make forces rough far from the data."""
    l_max: int = 3
    """Highest degree of the spherical harmonics of neighbours, 1 to 3."""
    n_triples: int = 1
    """Products of three densities of neighbours, 1 to 4. More of them resolve more
    angles, and take longer."""
    n_tensor_channels: int = 0
    """Channels of the vectors and matrices that messages carry beside scalars; 16 make
    conservative forces of flexible molecules more accurate, and a step of the training
    take a fifth to a third longer."""
    n_force_channels: int = 16
    """Channels of the forces along edges that direct forces and stresses are made of. 0
    makes them of vectors of atoms, as earlier versions did: less accurate."""
    n_neighbors: float = 40.0
    """Typical number of neighbours within the cutoff. Sums over neighbours are divided
    by its root; it sets the scale of untrained features and nothing else."""
