"""What ``dualforce tune`` has found for a model, kept beside it."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from ..forces import names_calculator, split_name, split_sum
from ..md import MDSettings
from .files import ModelReference


SAFE = MDSettings.n_inner
"""Inner steps where nothing is known."""

_KEY = ("model_sha256", "direct_model_sha256", "variant", "hydrogen_mass_u")
"""What must agree for a finding to apply."""


def record_file(model: ModelReference) -> Optional[Path]:
    """``NAME.tuned.json`` beside the model, or beside that of the direct forces of a
    calculator of ASE; none where both are calculators."""
    for place in (model.model, model.direct_model):
        if place is not None and not names_calculator(place):
            return Path(place).with_suffix(".tuned.json")
    return None


def remember(
    model: ModelReference,
    n_inner: int,
    *,
    timestep: float,
    temperature: float,
    hydrogen_mass: Optional[float],
    correction: Optional[float] = None,
) -> Optional[Path]:
    """Keep a number of inner steps for :func:`inner_steps`.

    :param model: the model it was found for.
    :param n_inner: inner steps in an outer step.
    :param timestep: inner step, in fs.
    :param temperature: in K.
    :param hydrogen_mass: in u; none for natural masses.
    :param correction: root mean square of conservative minus direct force in the run
        that found it, in meV/Å, for :func:`usual_correction`.
    :return: the file, or none where there is no place for it.
    """
    path = record_file(model)
    if path is None:
        return None
    entry: Dict[str, Any] = _key(model, hydrogen_mass) | {
        "temperature_K": temperature,
        "timestep_fs": timestep,
        "n_inner": n_inner,
        "correction_meV_per_A": correction,
    }
    others = [old for old in _read(path) if not _agree(old, entry)]
    try:
        path.write_text(json.dumps([*others, entry], indent=2) + "\n")
    except OSError:  # a model in a folder of somebody else
        return None
    return path


def inner_steps(
    model: ModelReference, *, timestep: float, hydrogen_mass: Optional[float]
) -> Tuple[int, str]:
    """Inner steps where the user gives none: what was found for the model, with outer
    steps of the same length; otherwise :data:`SAFE`.

    :param model: model to run.
    :param timestep: inner step, in fs.
    :param hydrogen_mass: in u; none for natural masses.
    :return: the number, and a sentence that says why.
    """
    found = _entries(model, hydrogen_mass)
    if not found:
        return SAFE, (
            f"M = {SAFE} (--inner), which suits most models; `dualforce tune` finds "
            "the best one for this model"
        )
    outer = found[-1]["n_inner"] * found[-1]["timestep_fs"]
    n_inner = max(1, math.floor(outer / timestep + 1e-6))
    return n_inner, (
        f"M = {n_inner}, from {record_file(model)}: outer steps of {outer:g} fs "
        f"conserved energy at {found[-1]['temperature_K']:g} K"
    )


def usual_correction(
    model: ModelReference, *, hydrogen_mass: Optional[float]
) -> Optional[float]:
    """Root mean square of conservative minus direct force where inner steps were found,
    in eV/Å; none where nothing was found.

    :param model: model to run.
    :param hydrogen_mass: in u; none for natural masses.
    """
    found = _entries(model, hydrogen_mass)
    correction = found[-1].get("correction_meV_per_A") if found else None
    return 1e-3 * correction if correction and _positive(correction) else None


def tuned_timestep(
    model: ModelReference, *, hydrogen_mass: Optional[float]
) -> Optional[float]:
    """The inner step with which a number of inner steps was found, in fs; none where
    nothing was found.

    :param model: model to run.
    :param hydrogen_mass: in u; none for natural masses.
    """
    found = _entries(model, hydrogen_mass)
    return float(found[-1]["timestep_fs"]) if found else None


def _entries(
    model: ModelReference, hydrogen_mass: Optional[float]
) -> List[Dict[str, Any]]:
    """What was found for a model, the latest last."""
    path = record_file(model)
    if path is None or not path.exists():
        return []
    key = _key(model, hydrogen_mass)
    return [entry for entry in _read(path) if _agree(entry, key)]


def _key(model: ModelReference, hydrogen_mass: Optional[float]) -> Dict[str, Any]:
    return {
        "model_sha256": _digest(model.model),
        "direct_model_sha256": model.direct_model and _digest(model.direct_model),
        "variant": model.variant,
        "hydrogen_mass_u": hydrogen_mass,
    }


def _digest(model: str) -> str:
    """A model by the contents of its files, those within a name or a sum included."""
    terms = split_sum(model)
    if terms:
        return "+".join(_digest(term) for term in terms)
    name, file = split_name(model) or ("", model)
    if file is None or not Path(file).is_file():
        return model
    digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    return f"{name}:{digest}" if name else digest


def _agree(entry: Dict[str, Any], other: Dict[str, Any]) -> bool:
    return all(entry.get(name) == other.get(name) for name in _KEY)


def _read(path: Path) -> List[Dict[str, Any]]:
    """Entries of a file that make sense; damaged ones count as missing."""
    try:
        entries = json.loads(path.read_text())
    except (OSError, ValueError):
        return []
    if not isinstance(entries, list):
        return []
    return [
        entry
        for entry in entries
        if isinstance(entry, dict)
        and all(_positive(entry.get(n)) for n in ("n_inner", "timestep_fs"))
        and _positive(entry.get("temperature_K"))
    ]


def _positive(value: object) -> bool:
    return isinstance(value, (int, float)) and value > 0
