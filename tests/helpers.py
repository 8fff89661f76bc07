"""Small models and structures that several test modules use."""

import copy
from typing import Any, Dict, List, Optional, Sequence

import numpy as np
import torch
from ase import Atoms
from metatensor.torch import Labels
from metatomic.torch import ModelOutput, System, systems_to_torch
from metatrain.utils.architectures import get_default_hypers
from metatrain.utils.data import DatasetInfo
from metatrain.utils.data.target_info import get_energy_target_info
from metatrain.utils.neighbor_lists import get_system_with_neighbor_lists
from torch import Tensor

from dualforce.nn.pair_potential import PairPotential
from dualforce.training.model import NAME, DualForce
from dualforce.training.pair_fit import polynomials


BACKBONES = ("painn", "ace", "pet", "soap_bpnn")

ENERGY = "energy"
FORCE = "non_conservative_force"
STRESS = "non_conservative_stress"

_SMALL: Dict[str, Dict[str, Any]] = {
    "painn": {"cutoff": 4.0, "n_layers": 2, "n_channels": 8, "n_radial": 4},
    "ace": {
        "cutoff": 4.0,
        "n_layers": 2,
        "n_channels": 8,
        "n_radial": 4,
        "n_tensor_channels": 4,
    },
    "pet": {
        "cutoff": 4.0,
        "d_pet": 8,
        "d_head": 8,
        "d_node": 8,
        "d_feedforward": 8,
        "num_heads": 2,
        "num_attention_layers": 1,
        "num_gnn_layers": 2,
    },
    "soap_bpnn": {
        "soap": {
            "max_angular": 2,
            "max_radial": 2,
            "cutoff": {"radius": 4.0, "width": 0.5},
        },
        "bpnn": {"num_hidden_layers": 1, "num_neurons_per_layer": 8, "layernorm": True},
    },
}


def small_hypers(backbone: str, **options: Any) -> Dict[str, Any]:
    """Default model hypers, but a small network.

    :param backbone: name of the network.
    :param options: other options of the model.
    """
    hypers = copy.deepcopy(get_default_hypers(NAME)["model"])
    hypers["backbone"] = backbone
    hypers[backbone].update(copy.deepcopy(_SMALL[backbone]))
    hypers.update(options)
    return hypers


def energy_info(
    names: Sequence[str] = (ENERGY,),
    types: Sequence[int] = (1, 6, 7, 8),
    unit: str = "eV",
) -> DatasetInfo:
    """Energies with forces and stresses."""
    targets = {
        name: get_energy_target_info(
            name,
            {"quantity": "energy", "unit": unit},
            add_position_gradients=True,
            add_strain_gradients=True,
        )
        for name in names
    }
    return DatasetInfo(
        length_unit="Angstrom", atomic_types=list(types), targets=targets
    )


def make_model(
    backbone: str = "painn",
    dtype: torch.dtype = torch.float64,
    info: Optional[DatasetInfo] = None,
    **options: Any,
) -> Any:
    """A small model with random weights, scales, baselines and pair potentials, for
    evaluation.

    :param backbone: name of the network.
    :param dtype: precision of the network.
    :param info: targets; an energy with forces and stress if not given.
    :param options: options of the model.
    """
    torch.manual_seed(0)
    model = DualForce(small_hypers(backbone, **options), info or energy_info())
    for name, calibration in model.calibrations.items():
        calibration.scale.fill_(0.7 if model.kinds[name] == "scalar" else 1.3)
        if model.kinds[name] == "scalar":
            calibration.baseline.copy_(torch.randn_like(calibration.baseline))
    if isinstance(model.pair_potential, PairPotential):
        for table in model.pair_potential.coefficients:
            table.copy_(random_splines(model.pair_potential))
        model.use_pair_potential()
    model.network_to(torch.device("cpu"), dtype)
    return model.eval()


def random_splines(potential: PairPotential) -> Tensor:
    """Smooth curves of the distance, of 0.05 eV."""
    grid = np.linspace(0.0, 3.0, potential.n_intervals)
    phases = 1.0 + np.arange(potential.n_pairs)[:, None]
    decay = np.linspace(1.0, 0.0, potential.n_intervals)
    return polynomials(potential, 0.05 * np.cos(grid * phases) * decay)


def random_cell(
    n_atoms: int = 12,
    length: float = 6.0,
    seed: int = 0,
    pbc: Sequence[bool] = (True, True, True),
    min_distance: float = 1.2,
) -> Atoms:
    """Atoms of H, C, N and O at random places in a triclinic cell."""
    rng = np.random.default_rng(seed)
    cell = length * (np.eye(3) + 0.15 * np.tril(rng.normal(size=(3, 3)), -1))
    atoms = Atoms(cell=cell, pbc=pbc)
    while len(atoms) < n_atoms:
        trial = atoms.copy()
        symbol = rng.choice(["H", "C", "N", "O"])
        trial += Atoms([symbol], positions=[rng.random(3) @ cell])
        distances = trial.get_all_distances(mic=True)[-1, :-1]
        if distances.min(initial=np.inf) > min_distance:
            atoms = trial
    return atoms


def as_system(
    model: Any,
    atoms: Atoms,
    dtype: torch.dtype = torch.float64,
    positions: Optional[Tensor] = None,
    cell: Optional[Tensor] = None,
) -> System:
    """A structure with the neighbour lists the model asks for.

    :param model: the model.
    :param atoms: the structure.
    :param dtype: precision.
    :param positions: positions to use instead, possibly with gradient.
    :param cell: cell to use instead, possibly with gradient.
    """
    system = systems_to_torch(atoms, dtype=dtype)
    system = System(
        types=system.types,
        positions=system.positions if positions is None else positions,
        cell=system.cell if cell is None else cell,
        pbc=system.pbc,
    )
    return get_system_with_neighbor_lists(system, model.requested_neighbor_lists())


def evaluate(
    model: Any,
    structures: List[System],
    names: Sequence[str] = (ENERGY, FORCE, STRESS),
    sample_kind: Optional[str] = None,
    selected_atoms: Optional[Labels] = None,
) -> Dict[str, Tensor]:
    """Values of outputs: by default energies and stresses of structures and forces of
    atoms."""
    outputs = {
        name: ModelOutput(
            sample_kind=sample_kind or ("atom" if name.startswith(FORCE) else "system")
        )
        for name in names
    }
    results = model(structures, outputs, selected_atoms)
    return {name: results[name].block().values for name in names}


def predict(model: Any, atoms: Atoms, **options: Any) -> Dict[str, Tensor]:
    """Values of outputs for one structure, without gradients."""
    with torch.no_grad():
        return evaluate(model, [as_system(model, atoms)], **options)


def energy_of(model: Any, atoms: Atoms) -> float:
    """Energy of a structure."""
    return float(predict(model, atoms, names=[ENERGY])[ENERGY])
