"""What the training data of a model cover, as its metadata say."""

import json
from dataclasses import dataclass, field
from typing import Any, Dict, Iterator, Mapping, Optional, Tuple

import ase
import numpy as np

from .neighbors import pairs_within


KEY = "dualforce-training-domain"
"""Name in ``ModelMetadata.extra``."""

CLOSER = 0.96
"""Distances count as new below this share of the shortest one of the data."""

DENSER = 0.05
"""Densities count as new where they differ by more than this share."""

CROWDED = 1.2
"""Numbers of neighbours count as new beyond this multiple of the largest."""

SHARES = 0.05
"""Shares of elements count as new where they differ by more than this."""


@dataclass(frozen=True)
class TrainingDomain:
    """What training data cover, in Å."""

    cutoff: float
    """Of the neighbours that were counted."""
    shortest: Dict[Tuple[str, str], float] = field(default_factory=dict)
    """Shortest distance of each pair of elements, by both orders of their symbols."""
    neighbors: Dict[str, int] = field(default_factory=dict)
    """Largest number of neighbours of each element."""
    density: Optional[Tuple[float, float]] = None
    """Least and greatest number of atoms per Å^3 of fully periodic structures."""
    composition: Dict[str, Tuple[float, float]] = field(default_factory=dict)
    """Least and greatest share of each element."""
    force_difference: Dict[str, float] = field(default_factory=dict)
    """Root mean square of conservative minus direct force on the validation set, in
    eV/Å, by name of the energy."""

    @classmethod
    def from_extra(cls, extra: Mapping[str, str]) -> Optional["TrainingDomain"]:
        """Read what a model says about itself; None where it says nothing, or in a way
        that cannot be read.

        :param extra: ``ModelMetadata.extra``.
        """
        try:
            return cls._from_dict(json.loads(extra[KEY]))
        except (KeyError, TypeError, ValueError, AttributeError):
            return None

    @classmethod
    def _from_dict(cls, stored: Dict[str, Any]) -> "TrainingDomain":
        shortest = {}
        for pair, value in stored["shortest"].items():
            first, second = pair.split("-")
            shortest[first, second] = shortest[second, first] = float(value)
        density = stored["density"]
        return cls(
            cutoff=float(stored["cutoff"]),
            shortest=shortest,
            neighbors={s: int(n) for s, n in stored["neighbors"].items()},
            density=(float(density[0]), float(density[1])) if density else None,
            composition={
                symbol: (float(least), float(greatest))
                for symbol, (least, greatest) in stored["composition"].items()
            },
            force_difference={
                energy: float(difference)
                for energy, difference in stored.get("force_difference", {}).items()
            },
        )

    def departures(self, atoms: ase.Atoms) -> Iterator[Tuple[str, str]]:
        """How a structure leaves the data: at most one item for distances, density,
        crowding and composition each.

        :param atoms: the structure.
        :return: which of these, and a sentence with numbers.
        """
        for kind, sentence in (
            ("distance", self._distance(atoms)),
            ("density", self._density(atoms)),
            ("crowding", self._crowding(atoms)),
            ("composition", self._composition(atoms)),
        ):
            if sentence is not None:
                yield kind, sentence

    def _distance(self, atoms: ase.Atoms) -> Optional[str]:
        if not self.shortest:
            return None
        symbols = np.array(atoms.get_chemical_symbols())
        kinds, index = np.unique(symbols, return_inverse=True)
        table = np.array(
            [[self.shortest.get((a, b), 0.0) for b in kinds] for a in kinds]
        )
        if not table.any():
            return None
        first, second, distances = pairs_within(atoms, float(CLOSER * table.max()))
        known = table[index[first], index[second]]
        new = np.flatnonzero(distances < CLOSER * known)
        if len(new) == 0:
            return None
        worst = new[np.argmin(distances[new] / known[new])]
        i, j = int(first[worst]), int(second[worst])
        a, b = symbols[i], symbols[j]
        return (
            f"atoms {i} ({a}) and {j} ({b}) are {distances[worst]:.2f} Å apart; the "
            f"shortest {a}-{b} distance of the training data is {known[worst]:.2f} Å"
        )

    def _density(self, atoms: ase.Atoms) -> Optional[str]:
        if self.density is None or not atoms.pbc.all() or atoms.cell.rank < 3:
            return None
        least, greatest = self.density
        now = len(atoms) / atoms.get_volume()
        if (1.0 - DENSER) * least <= now <= (1.0 + DENSER) * greatest:
            return None
        return (
            f"the density is {now:.4f} atoms/Å^3; that of the training data is "
            f"{_range(least, greatest, '.4f')}"
        )

    def _crowding(self, atoms: ase.Atoms) -> Optional[str]:
        # In a fully periodic structure the density says the same.
        if not self.neighbors or (self.density is not None and atoms.pbc.all()):
            return None
        first, _, _ = pairs_within(atoms, self.cutoff)
        counts = np.bincount(first, minlength=len(atoms))
        symbols = atoms.get_chemical_symbols()
        most = np.array([self.neighbors.get(s, len(atoms)) for s in symbols])
        worst = int(np.argmax(counts / np.maximum(most, 1)))
        if counts[worst] <= CROWDED * most[worst]:
            return None
        return (
            f"atom {worst} ({symbols[worst]}) has {counts[worst]} neighbours within "
            f"{self.cutoff:g} Å; in the training data {symbols[worst]} has "
            f"{most[worst]} at most"
        )

    def _composition(self, atoms: ase.Atoms) -> Optional[str]:
        symbols = atoms.get_chemical_symbols()
        for symbol, (least, greatest) in self.composition.items():
            share = symbols.count(symbol) / max(len(symbols), 1)
            if not least - SHARES <= share <= greatest + SHARES:
                return (
                    f"{100.0 * share:.0f} % of the atoms are {symbol}; in the training "
                    f"data {_range(100.0 * least, 100.0 * greatest, '.0f')} %"
                )
        return None


def without_difference(extra: Mapping[str, str]) -> Dict[str, str]:
    """What a model says about itself, without how far its forces are apart: of a model
    whose forces are from two others that is not known.

    :param extra: ``ModelMetadata.extra``.
    """
    kept = dict(extra)
    domain = TrainingDomain.from_extra(extra)
    if domain is not None and domain.force_difference:
        stored = json.loads(kept[KEY])
        del stored["force_difference"]
        kept[KEY] = json.dumps(stored)
    return kept


def _range(least: float, greatest: float, style: str) -> str:
    low, high = f"{least:{style}}", f"{greatest:{style}}"
    return low if low == high else f"{low} to {high}"
