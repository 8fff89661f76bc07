"""Targets: what the user declares and what is derived from it."""

from dataclasses import dataclass
from typing import Dict, List, Optional

from metatomic.torch import unit_conversion_factor
from metatrain.utils.data import DatasetInfo, TargetInfo
from metatrain.utils.data.target_info import get_generic_target_info


FORCE = "non_conservative_force"
STRESS = "non_conservative_stress"

FORCES_GRADIENT = "_positions_gradients"
VIRIAL_GRADIENT = "_strain_gradients"


@dataclass(frozen=True)
class EnergyTarget:
    """An energy and the direct targets that belong to it.

    :param name: name of the energy.
    :param force: name of its direct force, if there is one.
    :param stress: name of its direct stress, if there is one.
    :param derived: which of these two take their labels from the energy's gradients.
    """

    name: str
    force: Optional[str]
    stress: Optional[str]
    derived: tuple[str, ...]


def target_kind(name: str, info: TargetInfo) -> str:
    """Kind of head a target needs: ``"scalar"``, ``"vector"``, ``"force"`` or
    ``"stress"``.

    :raises ValueError: if there is no head for such a target.
    """
    base = name.split("/")[0]
    supported = "energies, scalars, vectors, direct forces and direct stresses"
    if len(info.layout) != 1 or info.is_spherical or info.sample_kind == "atom_pair":
        raise ValueError(
            f"target '{name}' cannot be learnt: dualforce predicts {supported}"
        )
    rank = len(info.layout.block().components)
    if base in (FORCE, "non_conservative_forces") and rank == 1:
        return "force"
    if base == STRESS and rank == 2:
        return "stress"
    if rank < 2 and base not in (FORCE, STRESS):
        return "vector" if rank == 1 else "scalar"
    raise ValueError(
        f"target '{name}' has Cartesian rank {rank}, which does not fit its name; "
        f"dualforce predicts {supported}"
    )


def _direct_name(base: str, energy: str) -> str:
    """``energy`` -> ``base``, ``energy/pbe`` -> ``base/pbe``, ``mtt::U0`` ->
    ``base/U0``."""
    if energy == "energy":
        return base
    return f"{base}/{energy.removeprefix('energy/').removeprefix('mtt::')}"


def _direct_info(name: str, energy: TargetInfo, length_unit: str) -> TargetInfo:
    is_force = name.startswith(FORCE)
    unit = ""
    if energy.unit and length_unit:
        unit = f"{energy.unit}/{length_unit}" + ("" if is_force else "^3")
    return get_generic_target_info(
        name,
        {
            "quantity": "force" if is_force else "pressure",
            "unit": unit,
            "type": {"cartesian": {"rank": 1 if is_force else 2}},
            "num_subtargets": 1,
            "sample_kind": "atom" if is_force else "system",
            "description": "direct force" if is_force else "direct stress",
        },
    )


def energy_targets(info: DatasetInfo, forces: str) -> List[EnergyTarget]:
    """Find the direct targets of every energy.

    :param info: targets as the user declared them.
    :param forces: the option ``forces`` of the model.
    """
    found = []
    for name, target in info.targets.items():
        if target.quantity != "energy" or not target.is_scalar:
            continue
        names: Dict[str, Optional[str]] = {}
        derived = []
        for base, gradient in ((FORCE, "positions"), (STRESS, "strain")):
            direct = _direct_name(base, name)
            explicit = direct in info.targets
            has_labels = gradient in target.gradients and forces != "conservative"
            names[base] = direct if explicit or has_labels else None
            if has_labels and not explicit:
                derived.append(direct)
        found.append(EnergyTarget(name, names[FORCE], names[STRESS], tuple(derived)))
    return found


def check_unit_of_kept(name: str, kept: Optional[TargetInfo], new: TargetInfo) -> None:
    """Refuse labels in another unit than a head predicts.

    :param name: name of a direct target.
    :param kept: the target of a checkpoint, if it declared one.
    :param new: the target that new data derive from an energy.
    :raises ValueError: if both units are known and differ.
    """
    if kept is None or not (kept.unit and new.unit):
        return
    if abs(unit_conversion_factor(kept.unit, new.unit) - 1.0) > 1e-6:
        raise ValueError(
            f"the checkpoint predicts '{name}' in {kept.unit}, and the data have it in "
            f"{new.unit}, from the unit of their energy; declare '{name}' as a target "
            "of its own, with labels in the unit of the checkpoint"
        )


def with_direct_targets(info: DatasetInfo, forces: str) -> Dict[str, TargetInfo]:
    """All targets of the model: those declared and the direct ones derived.

    :param info: targets as the user declared them.
    :param forces: the option ``forces`` of the model.
    """
    targets = dict(info.targets)
    for energy in energy_targets(info, forces):
        for direct in energy.derived:
            targets[direct] = _direct_info(
                direct, info.targets[energy.name], info.length_unit
            )
    return targets
