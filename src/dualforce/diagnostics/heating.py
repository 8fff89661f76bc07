"""Runs at constant energy: how fast a force heats what it should conserve."""

import tempfile
from pathlib import Path
from typing import List, Tuple

import ase
import numpy as np
from ase import units

from ..dynamics import Guard, RespaVelocityVerlet, TwoForces
from ..dynamics.evaluation import Array
from ..dynamics.statistics import slope_with_error
from ..dynamics.thermostats import check_positive
from .results import DIRECT, NVERun
from .runs import PICOSECOND, Outcome, Progress, followed, sample, silent


INTERVAL = 10.0
"""Between records, in fs."""

MAX_CHANGE = 0.5
"""In eV/atom: a run that has gained or lost so much ends as failed."""

NOT_KNOWN = (float("nan"), float("nan"))


def run_nve(
    forces: TwoForces,
    start: ase.Atoms,
    *,
    kind: str,
    n_inner: int = 1,
    timestep_fs: float,
    length_fs: float,
    has_energy: bool = True,
    progress: Progress = silent,
) -> NVERun:
    """Run at constant energy and see what becomes of it.

    The conserved quantity is kinetic plus conservative energy, also where direct forces
    move the atoms. Errors are those of block averages.

    :param forces: the model.
    :param start: equilibrated structure with momenta
        (:func:`~dualforce.diagnostics.runs.prepare`), which is not changed.
    :param kind: ``conservative``, ``direct``, ``forces`` or ``MTS``.
    :param n_inner: inner steps of ``MTS``.
    :param timestep_fs: length of an inner step, in fs.
    :param length_fs: time to run, in fs.
    :param has_energy: whether the model has an energy; without one only the heating is
        known.
    :param progress: told the part that is done.
    :raises ValueError: if an argument makes no sense.
    """
    check_positive(timestep_fs=timestep_fs, length_fs=length_fs)
    with tempfile.TemporaryDirectory() as folder:
        run = RespaVelocityVerlet(
            start.copy(),
            timestep_fs * units.fs,
            followed(forces, kind, n_inner),
            n_inner,
            # Corrections out of their usual range show in the result.
            guard=Guard(factor=float("inf"), max_drift=MAX_CHANGE),
            last_good=Path(folder) / "last-good.extxyz",
        )
        series = _Series(run, forces, kind == DIRECT, has_energy)
        outcome = sample(run, length_fs, INTERVAL, series.record, progress)
    return _result(kind, n_inner, outcome, series.columns)


class _Series:
    """Time (ps), temperature (K) and conserved quantity (meV/atom) at the records."""

    def __init__(
        self,
        run: RespaVelocityVerlet,
        forces: TwoForces,
        is_direct: bool,
        has_energy: bool,
    ) -> None:
        self._run, self._forces = run, forces
        self._is_direct, self._has_energy = is_direct, has_energy
        self._rows: List[Tuple[float, float, float]] = []

    def record(self) -> None:
        """Take note of the present structure."""
        atoms = self._run.atoms
        conserved = self._conserved(atoms) if self._has_energy else float("nan")
        if self._has_energy and not np.isfinite(conserved):
            raise FloatingPointError("the energy is not finite")
        self._rows.append(
            (
                self._run.get_time() / PICOSECOND,
                atoms.get_temperature(),
                1000.0 * conserved / len(atoms),
            )
        )

    def _conserved(self, atoms: ase.Atoms) -> float:
        if not self._is_direct:
            return self._run.conserved
        energy = self._forces.conservative(atoms).energy
        assert energy is not None
        return energy + float(atoms.get_kinetic_energy())

    @property
    def columns(self) -> Array:
        """Shape ``[3, n]``; without columns where not even the start was recorded."""
        return np.array(self._rows, dtype=float).reshape(-1, 3).T


def _result(kind: str, n_inner: int, outcome: Outcome, columns: Array) -> NVERun:
    times, temperature, conserved = columns
    has_energy = np.isfinite(conserved).any()
    return NVERun(
        forces=kind,
        n_inner=n_inner,
        length_ps=outcome.length_ps,
        failed=outcome.failed,
        drift=slope_with_error(times, conserved) if has_energy else NOT_KNOWN,
        heating=slope_with_error(times, temperature),
        ms_per_step=outcome.ms_per_step,
        times=times.tolist(),
        temperature=temperature.tolist(),
        conserved=(conserved - conserved[0]).tolist() if has_energy else [],
    )
