"""The log of a run, and what it says in a few lines."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Dict, List, Tuple

import numpy as np
from ase import units

from .barostat import RespaNPT
from .preparation import degrees_of_freedom, temperatures
from .respa import RespaVelocityVerlet
from .statistics import mean_with_error, slope_with_error


class RunLog:
    """A line of comma-separated numbers for each frame, flushed as it is written.

    :param run: the run.
    :param file: open file; the names of the columns are written if it is empty.
    """

    def __init__(self, run: RespaVelocityVerlet, file: IO[str]) -> None:
        self.run = run
        self.file = file
        self._degrees = degrees_of_freedom(run.atoms)
        self._writer = csv.writer(file, lineterminator="\n")
        if file.tell() == 0:
            self._writer.writerow(self.values())

    def write(self) -> None:
        """Add a line for the present step."""
        self._writer.writerow(self.values().values())
        self.file.flush()

    def values(self) -> Dict[str, str]:
        """Name and value of each column."""
        run, atoms = self.run, self.run.atoms
        point, conserved = run.point, run.conserved
        start = conserved if run.start_conserved is None else run.start_conserved
        correction = point.correction
        columns = {
            "step": f"{run.nsteps * run.n_inner}",
            "time_ps": f"{run.get_time() / (1000.0 * units.fs):.6g}",
            "potential_eV": f"{point.conservative.energy:.6f}",
            "kinetic_eV": f"{atoms.get_kinetic_energy():.6f}",
            "conserved_eV": f"{conserved:.6f}",
            "drift_meV_per_atom": f"{1000.0 * (conserved - start) / len(atoms):.6g}",
            "temperature_K": f"{atoms.get_temperature():.6g}",
        }
        for symbol, value in temperatures(atoms, self._degrees).items():
            columns[f"temperature_{symbol}_K"] = f"{value:.6g}"
        if isinstance(run, RespaNPT):
            columns["volume_A3"] = f"{atoms.get_volume():.6f}"
            columns["pressure_bar"] = f"{_pressure(run) / units.bar:.6g}"
        columns["correction_meV_per_A"] = (
            "" if correction is None else f"{1000.0 * correction:.6g}"
        )
        columns["inner_steps"] = f"{run.n_inner_now}"
        return columns


def _pressure(run: RespaNPT) -> float:
    """Of particles and conservative stress, in eV/Å^3."""
    stress = run.point.conservative.stress
    assert stress is not None
    kinetic = 2.0 * run.atoms.get_kinetic_energy() / run.atoms.get_volume()
    return float(kinetic - np.trace(stress)) / 3.0


@dataclass(frozen=True)
class LogSummary:
    """What a log says about a run."""

    drift: Tuple[float, float]
    """Of the conserved quantity, in meV/atom/ps, with its error."""
    means: Dict[str, Tuple[float, float]]
    """Averages over the second half with their errors, by name of the column."""

    def lines(self) -> List[str]:
        """The summary for people."""
        drift = _with_error(self.drift, "meV/atom/ps", ".3g")
        lines = [f"drift of the conserved quantity: {drift}"]
        for name, estimate in self.means.items():
            quantity, unit = name.rsplit("_", 1)
            value = _with_error(estimate, _UNITS[unit], ".5g")
            lines.append(f"{quantity.replace('_', ' of ')}: {value} (second half)")
        return lines


def _with_error(estimate: Tuple[float, float], unit: str, style: str) -> str:
    value, error = estimate
    if not np.isfinite(value):
        return "not known, the run is too short"
    if not np.isfinite(error):
        return f"{value:{style}} {unit} (the run is too short for an error)"
    return f"{value:{style}} ± {error:.2g} {unit}"


_UNITS = {"K": "K", "A3": "Å³", "bar": "bar"}


def summarise(path: Path) -> LogSummary:
    """Drift and averages of a run.

    :param path: file written by :class:`RunLog`.
    """
    with path.open() as file:
        names = file.readline().strip().split(",")
        rows = np.genfromtxt(file, delimiter=",", ndmin=2)
    columns = dict(zip(names, rows.T, strict=True))
    averaged = [name for name in names if name.rsplit("_", 1)[-1] in _UNITS]
    late = slice(len(rows) // 2, None)
    return LogSummary(
        drift=slope_with_error(columns["time_ps"], columns["drift_meV_per_atom"]),
        means={name: mean_with_error(columns[name][late]) for name in averaged},
    )
