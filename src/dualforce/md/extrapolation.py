"""Whether a run stays within what the training data of its model cover."""

import logging
from typing import Set

import ase
import numpy as np

from ..forces import ForceSource


class Extrapolation:
    """Warns where a run leaves the training data: once for distances, density,
    crowding and composition each. Sources that know nothing of their data are never
    warned about.

    :param forces: source of the forces.
    """

    def __init__(self, forces: ForceSource) -> None:
        self._domain = forces.domain
        self.warned: Set[str] = set()
        """What has been warned about."""

    def watch(self, atoms: ase.Atoms, where: str) -> None:
        """Look at a structure.

        :param atoms: the structure.
        :param where: of the run, for instance ``at step 120``.
        """
        if self._domain is None or not np.isfinite(atoms.positions).all():
            return
        for kind, sentence in self._domain.departures(atoms):
            if kind not in self.warned:
                self.warned.add(kind)
                first, _, second = sentence.partition(";")
                logging.warning(
                    f"the run leaves the training data of the model: {first} {where};"
                    f"{second}"
                )
