from .integrators import (
    respa_nve_init,
    respa_nve_step,
    respa_nvt_langevin_init,
    respa_nvt_langevin_step,
    respa_nvt_vrescale_init,
    respa_nvt_vrescale_step,
)
from .model import CombinedModel, MetatomicTwoForceModel, TwoForceModel, load_model
from .state import RespaLangevinState, RespaState
from .structures import atoms_from_state, state_from_atoms

__all__ = [
    "CombinedModel",
    "MetatomicTwoForceModel",
    "RespaLangevinState",
    "RespaState",
    "TwoForceModel",
    "atoms_from_state",
    "load_model",
    "respa_nve_init",
    "respa_nve_step",
    "respa_nvt_langevin_init",
    "respa_nvt_langevin_step",
    "respa_nvt_vrescale_init",
    "respa_nvt_vrescale_step",
    "state_from_atoms",
]
