"""Findings that nobody has measured."""

from dataclasses import replace
from typing import Any, Dict, Optional, Sequence

import numpy as np
from ase.build import molecule

from dualforce.diagnostics.findings import (
    CONSERVATIVE,
    DIRECT,
    DONE,
    FAILED,
    MTS,
    Entry,
    Findings,
)
from dualforce.diagnostics.measures.errors import (
    EnergyErrors,
    ForceErrors,
    FrameErrors,
)
from dualforce.diagnostics.measures.gradient import Derivative, GradientCheck
from dualforce.diagnostics.measures.jacobian import Asymmetry, PairBin
from dualforce.diagnostics.measures.loops import LoopWork
from dualforce.diagnostics.measures.nve import NVERun
from dualforce.diagnostics.measures.nvt import LANGEVIN, SVR, NVTRun
from dualforce.diagnostics.measures.relaxation import RelaxationRate
from dualforce.diagnostics.measures.speed import Speed
from dualforce.diagnostics.measures.symmetries import BrokenSymmetries
from dualforce.diagnostics.report import Report
from dualforce.diagnostics.setup import Conditions, choose_structures
from dualforce.forces import Kind
from dualforce.md.constant_energy import Candidate
from dualforce.md.statistics import Estimate


NAN = float("nan")

BOTH: Sequence[Kind] = (CONSERVATIVE, DIRECT)  # type: ignore[assignment]


def gradient(deviation: float = 1e-6, error: float = 1e-6) -> GradientCheck:
    """A force of 1 eV/Å that deviates in one of two directions, in eV/Å."""
    return GradientCheck(
        [
            Derivative("all atoms", 1.0, 1.0, error, 2e-3),
            Derivative("H 7", -1.0, -1.0 + deviation, error, 2e-3),
        ],
        1e-9,
        1.0,
    )


def asymmetry(kind: str, value: float, error: Optional[float] = None) -> Asymmetry:
    """An asymmetry that grows with the distance of a pair."""
    pairs = [
        PairBin(name, distance, 10, min(1.0, 0.2 * distance), np.exp(-distance), 0.01)
        for name in ("H-H", "H-O")
        for distance in (1.25, 2.75, 4.25)
    ]
    method = "automatic differentiation"
    return Asymmetry(
        kind, value, error, method, 16, 32, {"H": 0.0371, "O": value}, [], pairs
    )


def loop(kind: str, name: str, work: float) -> LoopWork:
    """Work that is done evenly."""
    angles = np.linspace(0.0, 360.0, 9)
    cumulative = work * angles / 360.0
    return LoopWork(
        kind, name, work, 1e-6, 64, 3.0, angles.tolist(), cumulative.tolist(), 0.1
    )


def candidate(
    drift: Estimate = (0.0, 0.02),
    n_inner: int = 1,
    length_ps: float = 5.0,
    ms: float = 10.0,
    failed: Optional[str] = None,
    heating: Optional[Estimate] = None,
) -> Candidate:
    """What a run with a steady drift shows."""
    heat = 3.868
    return Candidate(
        n_inner=n_inner,
        outer_step_fs=0.5 * n_inner,
        length_ps=length_ps,
        failed=failed,
        drift=drift,
        late_drift=drift,
        mean_drift=(NAN, NAN),
        relative_drift=(0.1 * drift[0], 0.1 * drift[1]),
        fluctuation=0.1,
        heating=(heat * drift[0], heat * drift[1]) if heating is None else heating,
        correction=None if n_inner == 1 else 50.0,
        growth=None if n_inner == 1 else 1.0,
        ms_per_step=ms,
    )


def nve(kind: str, drift: Estimate = (0.0, 0.02), **options: Any) -> NVERun:
    """A run at constant energy, of which :func:`candidate` says what it shows."""
    shown = candidate(drift, **options)
    times = np.linspace(0.0, shown.length_ps, 20)
    energy = drift[0] if np.isfinite(drift[0]) else 0.0
    return NVERun(
        kind,
        shown,
        times.tolist(),
        (300.0 + 3.868 * energy * times).tolist(),
        (energy * times).tolist() if np.isfinite(drift[0]) else [],
    )


def nvt(
    kind: str,
    thermostat: str,
    tau_fs: float,
    oxygen: Estimate,
    hydrogen: Estimate,
    diffusion: float = 0.25,
    length_ps: float = 20.0,
    failed: Optional[str] = None,
) -> NVTRun:
    """A run of water."""
    both = (2.0 * hydrogen[0] + oxygen[0]) / 3.0
    split = (oxygen[0] - hydrogen[0], float(np.hypot(oxygen[1], hydrogen[1])))
    axis = np.linspace(0.0, 4000.0, 50)
    bell = np.exp(-(((axis - 3400.0) / 200.0) ** 2)) / 355.0
    lags = np.linspace(0.0, 0.5, 50)
    return NVTRun(
        kind=kind,
        n_inner=4 if kind == MTS else 1,
        thermostat=thermostat,
        tau_fs=tau_fs,
        target=300.0,
        length_ps=length_ps,
        failed=failed,
        deviation={"all": (both, 0.5 * split[1]), "O": oxygen, "H": hydrogen},
        splits={"O − H": split},
        diffusion={"O": (diffusion, 0.02), "H": (diffusion, 0.02)},
        frequencies=axis.tolist(),
        spectrum={"O": bell.tolist(), "H": bell.tolist()},
        lags=lags.tolist(),
        autocorrelation={x: np.cos(30 * lags).tolist() for x in "OH"},
        distances=np.linspace(0.0, 5.0, 50).tolist(),
        rdf={"O-O": np.ones(50).tolist()},
        ms_per_step=10.0,
    )


def relaxation(kind: str, converged: int) -> RelaxationRate:
    """Ten relaxations."""
    steps = 123.0 if converged else None
    return RelaxationRate(
        kind, "LBFGS", 1e-4, 1000, converged, 10, steps, [1e-4] * 9 + [float("inf")]
    )


NAMES: Dict[type, str] = {
    FrameErrors: "errors",
    GradientCheck: "gradient",
    Asymmetry: "jacobian",
    LoopWork: "loop",
    NVERun: "nve",
    NVTRun: "nvt",
    RelaxationRate: "relaxation",
    Speed: "speed",
    BrokenSymmetries: "symmetries",
}


def findings(*results: Any, **options: Any) -> Findings:
    """Results as the measures of one model."""
    entries = [
        Entry(f"{NAMES[type(result)]}/{i}", f"task {i}", DONE, result, None, 1.0, {})
        for i, result in enumerate(results)
    ]
    model = Findings(
        name="model.pt",
        digest="0123456789abcdef" * 4,
        kinds=tuple(BOTH),
        has_energy=True,
        is_calculator=False,
        n_atoms=192,
        periodic=True,
        entries=entries,
    )
    return replace(model, **options)


def good() -> Findings:
    """A model like that of the paper, but better."""
    forces = [
        ForceErrors(CONSERVATIVE, "labels", 0.0202, 0.03, {"H": 0.018, "O": 0.024}, 20),
        ForceErrors(DIRECT, CONSERVATIVE, 0.018, 0.025, {"H": 0.016, "O": 0.022}, 20),
    ]
    return findings(
        Speed({CONSERVATIVE: 25.0, DIRECT: 10.0}),
        gradient(),
        FrameErrors(EnergyErrors(5.9e-4, 8e-4, 5e-3, 6e-4, 20), forces),
        BrokenSymmetries(CONSERVATIVE, 1e-9, None, 1e-5, 1e-6, 0.9),
        BrokenSymmetries(DIRECT, 1e-9, None, 0.0012, 1e-6, 0.9),
        asymmetry(CONSERVATIVE, 6e-8, 1e-9),
        asymmetry(DIRECT, 0.00437, 0.0001),
        loop(CONSERVATIVE, "plane", 0.0),
        loop(DIRECT, "plane", 0.0777),
        nve(CONSERVATIVE, (0.01, 0.02), ms=25.0),
        nve(DIRECT, (1.83, 0.05)),
        nve(MTS, (0.02, 0.02), n_inner=4, ms=12.5),
        nve(MTS, (1.02, 0.02), n_inner=8, ms=11.5),
        nvt(CONSERVATIVE, SVR, 10.0, (0.3, 0.5), (-0.2, 0.4)),
        nvt(MTS, SVR, 10.0, (0.1, 0.5), (-0.1, 0.4)),
        nvt(DIRECT, SVR, 10.0, (9.9, 0.5), (-4.4, 0.4)),
        nvt(CONSERVATIVE, LANGEVIN, 10.0, (0.1, 0.5), (0.0, 0.4), diffusion=0.05),
        nvt(DIRECT, LANGEVIN, 10.0, (0.2, 0.5), (0.0, 0.4), diffusion=0.05),
        relaxation(CONSERVATIVE, 10),
        relaxation(DIRECT, 3),
        name="good.pt",
    )


def bad() -> Findings:
    """A model whose direct force cannot be corrected."""
    made_up = findings(
        asymmetry(DIRECT, 0.31),
        nve(CONSERVATIVE, (0.05, 0.02), ms=25.0),
        nve(DIRECT, (NAN, NAN), failed="the energy is not finite", length_ps=0.123),
        nve(MTS, (1.5, 0.1), n_inner=2),
        nve(MTS, (1.9, 0.2), n_inner=4),
        name="bad.pt",
    )
    reason = "EMT has no <script>alert(1)</script> & so on"
    made_up.entries.append(Entry("loop/plane", "a closed loop", FAILED, reason=reason))
    return made_up


def report(*models: Findings) -> Report:
    """A report on models."""
    structures = choose_structures([molecule("H2O")] * 5, "water.xyz", 3)
    return Report(list(models), structures, Conditions(), "1 January 2026")
