"""The common start of all runs."""

from typing import List

import ase
from ase import units

from ...forces import DirectOnly, ForceSource
from ...md.preparation import EQUILIBRATION, equilibrate
from ..findings import DIRECT
from ..measure import Case, Measure, Progress, silent
from ..setup import Setup, Start


def prepare(
    source: ForceSource,
    atoms: ase.Atoms,
    *,
    timestep_fs: float,
    temperature_K: float,
    length_fs: float = EQUILIBRATION / units.fs,
    seed: int = 0,
    progress: Progress = silent,
) -> ase.Atoms:
    """Equilibrate a structure, with the conservative force where there is one.

    :param source: source of forces.
    :param atoms: structure, which is not changed; its velocities are not used.
    :param timestep_fs: length of a step, in fs.
    :param temperature_K: temperature, in K.
    :param length_fs: time to run, in fs.
    :param seed: seed of velocities and noise.
    :param progress: told the part that is done.
    :return: structure with momenta.
    :raises ValueError: if there is one atom only, or an argument makes no sense.
    :raises RunFailedError: if the structure cannot be equilibrated.
    """
    if len(atoms) < 2:
        raise ValueError(
            "the structure has one atom, which does not move by itself: dynamics need "
            "at least two"
        )
    return equilibrate(
        source if source.has_conservative else DirectOnly(source),
        atoms,
        timestep_fs * units.fs,
        temperature_K=temperature_K,
        seed=seed,
        length=length_fs * units.fs,
        progress=progress,
    )


class Equilibration(Measure):
    """Equilibrates the structure."""

    name = "start"
    title = "Equilibration"
    result = Start
    min_atoms = 2
    sizes = {"quick": {"length_fs": 300.0}, "full": {"length_fs": 2000.0}}

    def cases(self, setup: Setup) -> List[Case]:
        conditions, size = setup.conditions, setup.size(self)
        settings = {
            "temperature_K": conditions.temperature_K,
            "timestep_fs": conditions.timestep_fs,
            "seed": conditions.seed,
            **size,
        }
        n_steps = size["length_fs"] / conditions.timestep_fs
        return [Case("equilibration", settings, {setup.source.kinds[0]: n_steps})]

    def measure(
        self,
        setup: Setup,
        progress: Progress,
        *,
        temperature_K: float,
        timestep_fs: float,
        length_fs: float,
        seed: int,
    ) -> Start:
        start = prepare(
            setup.source,
            setup.atoms,
            temperature_K=temperature_K,
            timestep_fs=timestep_fs,
            length_fs=length_fs,
            seed=seed,
            progress=progress,
        )
        return Start(start.positions.tolist(), start.get_momenta().tolist())


def forces_of_run(source: ForceSource, kind: str, n_inner: int) -> ForceSource:
    """What drives a run, as a source for integrators.

    :param source: source of forces.
    :param kind: ``conservative``, ``direct`` or ``MTS``.
    :param n_inner: inner steps; only ``MTS`` has several.
    :raises ValueError: if there is no such kind, or it has no inner steps.
    """
    kinds = ("conservative", "direct", "MTS")
    if kind not in kinds:
        raise ValueError(f"the forces must be one of {', '.join(kinds)}, not '{kind}'")
    if n_inner != 1 and kind != "MTS":
        raise ValueError(f"a run with '{kind}' takes one inner step, not {n_inner}")
    return DirectOnly(source) if kind == DIRECT else source
