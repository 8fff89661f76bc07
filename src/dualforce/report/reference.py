"""Figures of the reference (arXiv:2412.11569), and where ours are found."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import List

from ..diagnostics.findings import Findings, Speed
from ..diagnostics.results import (
    CONSERVATIVE,
    DIRECT,
    FORCES,
    LANGEVIN,
    MTS,
    SVR,
    Asymmetry,
    NVTRun,
    RelaxationRate,
)
from ..diagnostics.verdict import diffusion_reference, slowing_of
from ..diagnostics.wording import significant, with_error
from .cells import NOTHING


NOT_CONSERVATIVE = (DIRECT, FORCES)


@dataclass(frozen=True)
class Row:
    """A figure of the paper."""

    figure: str
    theirs: str
    ours: Callable[[Findings], str]
    """The same of a model judged here."""


def _asymmetry(findings: Findings) -> str:
    for each in findings.of_type(Asymmetry):
        if each.kind in NOT_CONSERVATIVE:
            return significant(each.value)
    return NOTHING


def _cost(findings: Findings) -> str:
    for each in findings.of_type(Speed):
        if findings.has_both:
            return f"{each.ms[CONSERVATIVE] / each.ms[DIRECT]:.1f}"
    return NOTHING


def _heating(findings: Findings) -> str:
    for kind in NOT_CONSERVATIVE:
        run = findings.nve(kind)
        if run is not None:
            return f"{with_error(run.heating)} K/ps"
    return NOTHING


def _inner(findings: Findings) -> str:
    if findings.n_inner is None:
        return NOTHING
    run = findings.nve(MTS, findings.n_inner)
    if run is None:
        return NOTHING
    return f"M = {run.n_inner}: {with_error(run.drift)} meV/atom/ps"


def _thermostat(
    forces: str, thermostat: str, tau_fs: float
) -> Callable[[Findings], str]:
    def pick(findings: Findings) -> str:
        run = _find(findings, forces, thermostat, tau_fs)
        if run is None or not run.deviation:
            return NOTHING
        return ", ".join(f"{name} {with_error(x)}" for name, x in run.deviation.items())

    return pick


def _slowing(tau_fs: float) -> Callable[[Findings], str]:
    def pick(findings: Findings) -> str:
        run = _find(findings, DIRECT, LANGEVIN, tau_fs)
        slowing = run and slowing_of(run, diffusion_reference(findings))
        return NOTHING if not slowing else f"{slowing:.1f} times"

    return pick


def _find(
    findings: Findings, forces: str, thermostat: str, tau_fs: float
) -> NVTRun | None:
    for run in findings.of_type(NVTRun):
        if (run.forces, run.thermostat, run.tau_fs) == (forces, thermostat, tau_fs):
            return run
    return None


def _converged(kind: str) -> Callable[[Findings], str]:
    def pick(findings: Findings) -> str:
        for rate in findings.of_type(RelaxationRate):
            if rate.forces == kind and rate.optimizer == "LBFGS":
                return f"{100 * rate.converged / rate.n_runs:.0f} %"
        return NOTHING

    return pick


ROWS: List[Row] = [
    Row(
        "asymmetry λ of a direct force",
        "PET 0.004, ORB-v2 0.015, EquiformerV2 0.017, SOAP-BPNN 0.032",
        _asymmetry,
    ),
    Row("cost, conservative over direct", "2 to 3", _cost),
    Row(
        "heating at constant energy, direct",
        "PET 7 K/ps, ORB-v2 ten times that",
        _heating,
    ),
    Row("drift at constant energy, both forces", "M = 8: none", _inner),
    *(
        Row(
            f"temperature − target / K; direct, Langevin {tau:g} fs",
            theirs,
            _thermostat(DIRECT, LANGEVIN, tau),
        )
        for tau, theirs in (
            (1000.0, "all +12.8, H +11.2, O +16.2"),
            (100.0, "all +1.4, H +1.3, O +1.6"),
            (10.0, "all +0.1, H 0.0, O +0.2"),
        )
    ),
    *(
        Row(
            f"temperature − target / K; {words}, SVR 10 fs",
            theirs,
            _thermostat(forces, SVR, 10.0),
        )
        for forces, words, theirs in (
            (CONSERVATIVE, "conservative", "all +0.1, H −0.4, O +1.0"),
            (DIRECT, "direct", "all +0.3, H −4.4, O +9.9"),
            (MTS, "both forces", "M = 8: all 0.0, H −0.1, O +0.1"),
        )
    ),
    Row("diffusion slower by, Langevin 100 fs", "1.5 times", _slowing(100.0)),
    Row("diffusion slower by, Langevin 10 fs", "5 times", _slowing(10.0)),
    Row(
        "relaxations converged, direct, LBFGS", "PET 52 %, ORB 9 %", _converged(DIRECT)
    ),
    Row(
        "relaxations converged, conservative, LBFGS",
        "PET 58 %, MACE 94 %",
        _converged(CONSERVATIVE),
    ),
]
