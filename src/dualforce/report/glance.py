"""The figures that matter most."""

from collections.abc import Callable
from typing import List, Tuple

from ..diagnostics.findings import Findings, Speed
from ..diagnostics.results import (
    CONSERVATIVE,
    DIRECT,
    FORCES,
    MTS,
    Asymmetry,
    EnergyErrors,
    ForceErrors,
)
from ..diagnostics.verdict import speed_up
from ..diagnostics.wording import significant, with_error
from .cells import NOTHING, asymmetry_cell


def _picker(kind: str) -> Callable[[Findings], str]:
    def pick(findings: Findings) -> str:
        for each in findings.of_type(Asymmetry):
            if each.kind == kind:
                return asymmetry_cell(each)
        return NOTHING

    return pick


def _drift(kind: str) -> Callable[[Findings], str]:
    def pick(findings: Findings) -> str:
        run = findings.nve(kind)
        if run is None:
            return NOTHING
        if run.failed:
            return "broke down"
        return with_error(run.drift)

    return pick


def _pick_inner(findings: Findings) -> str:
    run = findings.n_inner and findings.nve(MTS, findings.n_inner)
    if not findings.has_both or findings.nve(CONSERVATIVE) is None:
        return NOTHING
    if not run:
        return "none works"
    given = ", as asked for" if findings.inner_was_given else ""
    return f"{findings.n_inner}{given}"


def _pick_inner_drift(findings: Findings) -> str:
    run = findings.n_inner and findings.nve(MTS, findings.n_inner)
    return with_error(run.drift) if run else NOTHING


def _pick_speed_up(findings: Findings) -> str:
    factor = speed_up(findings)
    return NOTHING if factor is None else f"{factor:.1f}"


def _pick_cost(findings: Findings) -> str:
    speeds = findings.of_type(Speed)
    if not speeds:
        return NOTHING
    return " / ".join(f"{ms:g}" for ms in speeds[0].ms.values())


def _pick_difference(findings: Findings) -> str:
    for each in findings.of_type(ForceErrors):
        if each.reference == CONSERVATIVE:
            return f"{1000 * each.rmse:.0f}"
    return NOTHING


def _force_error(kind: str) -> Callable[[Findings], str]:
    def pick(findings: Findings) -> str:
        for each in findings.of_type(ForceErrors):
            if each.reference == "labels" and each.kind == kind:
                return f"{1000 * each.mae:.1f}"
        return NOTHING

    return pick


def _pick_energy_error(findings: Findings) -> str:
    for each in findings.of_type(EnergyErrors):
        return significant(1000 * each.mae)
    return NOTHING


FIGURES: List[Tuple[str, Callable[[Findings], str]]] = [
    ("forces", lambda findings: ", ".join(findings.kinds)),
    ("cost of an evaluation / ms, in this order", _pick_cost),
    *(
        (f"λ, {kind} force" if kind != FORCES else "λ", _picker(kind))
        for kind in (DIRECT, CONSERVATIVE, FORCES)
    ),
    *(
        (
            f"drift at constant energy, {kind} / meV/atom/ps"
            if kind != FORCES
            else "drift at constant energy / meV/atom/ps",
            _drift(kind),
        )
        for kind in (DIRECT, CONSERVATIVE, FORCES)
    ),
    ("inner steps M", _pick_inner),
    ("drift with M / meV/atom/ps", _pick_inner_drift),
    ("speed with M, relative to conservative", _pick_speed_up),
    ("direct − conservative force, RMS / meV/Å", _pick_difference),
    *(
        (
            f"error of the {kind} force / meV/Å"
            if kind != FORCES
            else "error of the force / meV/Å",
            _force_error(kind),
        )
        for kind in (DIRECT, CONSERVATIVE, FORCES)
    ),
    ("error of the energy / meV/atom", _pick_energy_error),
]
