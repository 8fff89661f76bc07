"""Findings that nobody has measured."""

from typing import Any, List, Optional

import numpy as np
from ase.build import molecule

from dualforce.diagnostics.conditions import Conditions, choose_structures
from dualforce.diagnostics.findings import DONE, FAILED, Entry, Findings, Speed
from dualforce.diagnostics.presets import QUICK
from dualforce.diagnostics.results import (
    CONSERVATIVE,
    DIRECT,
    LANGEVIN,
    MTS,
    SVR,
    Asymmetry,
    EnergyErrors,
    Estimate,
    ForceErrors,
    LoopWork,
    NVERun,
    NVTRun,
    PairBin,
    RelaxationRate,
    Symmetries,
)
from dualforce.report import Report


NAN = float("nan")


def asymmetry(kind: str, value: float, error: Optional[float] = None) -> Asymmetry:
    """An asymmetry that grows with the distance of a pair."""
    pairs = [
        PairBin(name, distance, 10, min(1.0, 0.2 * distance), np.exp(-distance), 0.01)
        for name in ("H-H", "H-O")
        for distance in (1.25, 2.75, 4.25)
    ]
    method = "automatic differentiation"
    return Asymmetry(
        kind, value, error, method, 16, 32, 1.5, {"H": 0.0371, "O": value}, [], pairs
    )


def loop(kind: str, name: str, work: float) -> LoopWork:
    """Work that is done evenly."""
    angles = np.linspace(0.0, 360.0, 9)
    cumulative = work * angles / 360.0
    return LoopWork(
        kind, name, work, 1e-6, 64, 3.0, angles.tolist(), cumulative.tolist()
    )


def nve(
    forces: str,
    drift: Estimate,
    n_inner: int = 1,
    length_ps: float = 5.0,
    ms: float = 10.0,
    failed: Optional[str] = None,
) -> NVERun:
    """A run with a steady drift, of which a third shows as heat."""
    times = np.linspace(0.0, length_ps, 20)
    heating = (drift[0] * 3.868, drift[1] * 3.868)
    energy = drift[0] if np.isfinite(drift[0]) else 0.0
    return NVERun(
        forces,
        n_inner,
        length_ps,
        failed,
        drift,
        heating,
        ms,
        times.tolist(),
        (300.0 + 3.868 * energy * times).tolist(),
        (energy * times).tolist(),
    )


def nvt(
    forces: str,
    thermostat: str,
    tau_fs: float,
    oxygen: Estimate,
    hydrogen: Estimate,
    diffusion: float = 0.25,
    length_ps: float = 20.0,
) -> NVTRun:
    """A run of water."""
    both = (2.0 * hydrogen[0] + oxygen[0]) / 3.0
    axis = np.linspace(0.0, 4000.0, 50)
    bell = np.exp(-(((axis - 3400.0) / 200.0) ** 2)) / 355.0
    lags = np.linspace(0.0, 0.5, 50)
    return NVTRun(
        forces=forces,
        n_inner=4 if forces == MTS else 1,
        thermostat=thermostat,
        tau_fs=tau_fs,
        target=300.0,
        length_ps=length_ps,
        failed=None,
        deviation={"all": (both, 0.3), "O": oxygen, "H": hydrogen},
        diffusion={"O": (diffusion, 0.02), "H": (diffusion, 0.02)},
        frequencies=axis.tolist(),
        spectrum={"O": bell.tolist(), "H": bell.tolist()},
        lags=lags.tolist(),
        autocorrelation={x: np.cos(30 * lags).tolist() for x in "OH"},
        distances=np.linspace(0.0, 5.0, 50).tolist(),
        rdf={"O-O": np.ones(50).tolist()},
        ms_per_step=10.0,
    )


def relaxation(forces: str, converged: int) -> RelaxationRate:
    """Ten relaxations."""
    steps = 123.0 if converged else None
    return RelaxationRate(
        forces, "LBFGS", 1e-4, 1000, converged, 10, steps, [1e-4] * 9 + [float("inf")]
    )


def findings(
    *results: Any,
    name: str = "model.pt",
    kinds: Optional[List[str]] = None,
    n_inner: Optional[int] = None,
    has_energy: bool = True,
) -> Findings:
    """Results as the measures of one model."""
    entries = [
        Entry(f"task/{i}", f"task {i}", DONE, result, None, 1.0, {})
        for i, result in enumerate(results)
    ]
    kinds = [CONSERVATIVE, DIRECT] if kinds is None else kinds
    return Findings(
        name, "0123456789abcdef" * 4, kinds, has_energy, 192, True, n_inner, False, 1.0,
        entries,
    )  # fmt: skip


def good() -> Findings:
    """A model like that of the paper, but better."""
    return findings(
        EnergyErrors(5.9e-4, 8e-4, 20),
        ForceErrors(CONSERVATIVE, "labels", 0.0202, 0.03, {"H": 0.018, "O": 0.024}, 20),
        ForceErrors(DIRECT, CONSERVATIVE, 0.018, 0.025, {"H": 0.016, "O": 0.022}, 20),
        Symmetries(CONSERVATIVE, 1e-9, None, 1e-5, 1e-6),
        Symmetries(DIRECT, 1e-9, None, 0.0012, 1e-6),
        asymmetry(CONSERVATIVE, 6e-8, 1e-9),
        asymmetry(DIRECT, 0.00437, 0.0001),
        loop(CONSERVATIVE, "plane", 0.0),
        loop(DIRECT, "plane", 0.0777),
        Speed({CONSERVATIVE: 25.0, DIRECT: 10.0}),
        nve(CONSERVATIVE, (0.01, 0.02), ms=25.0),
        nve(DIRECT, (1.83, 0.05)),
        nve(MTS, (0.02, 0.02), n_inner=4, ms=12.5),
        nvt(MTS, SVR, 10.0, (0.1, 0.5), (-0.1, 0.4)),
        nvt(DIRECT, SVR, 10.0, (9.9, 0.5), (-4.4, 0.4)),
        nvt(DIRECT, LANGEVIN, 10.0, (0.2, 0.5), (0.0, 0.4), diffusion=0.05),
        relaxation(CONSERVATIVE, 10),
        relaxation(DIRECT, 3),
        name="good.pt",
        n_inner=4,
    )


def bad() -> Findings:
    """A model whose direct force cannot be corrected."""
    made_up = findings(
        asymmetry(DIRECT, 0.31),
        nve(CONSERVATIVE, (0.05, 0.02), ms=25.0),
        nve(DIRECT, (NAN, NAN), failed="after 0.123 ps: the energy is not finite"),
        nve(MTS, (12.5, 0.6), n_inner=2),
        nve(MTS, (80.0, 3.0), n_inner=4),
        name="bad.pt",
    )
    reason = "EMT has no <script>alert(1)</script> & so on"
    made_up.entries.append(Entry("loop/plane", "a closed loop", FAILED, reason=reason))
    return made_up


def report(*models: Findings) -> Report:
    """A report on models."""
    structures = choose_structures([molecule("H2O")] * 5, "water.xyz", 3)
    return Report(list(models), structures, Conditions(), QUICK, "1 January 2026")
