"""LAMMPS with its metatomic interface: data file and input.

The splitting is that of ``run_style respa``: the direct force inside, outside the
conservative force less the direct one. An outer step costs ``M + 1`` direct evaluations
and a conservative one.
"""

import math
from pathlib import Path
from typing import Dict, List, Optional

import ase
import numpy as np
import torch
from ase.data import chemical_symbols
from metatensor.torch import Labels, TensorMap
from metatomic.torch import (
    AtomisticModel,
    ModelCapabilities,
    ModelOutput,
    NeighborListOptions,
    System,
)

from ..forces import DIRECT_STRESS, Array, load_model
from ..md.settings import MDSettings
from .box import in_box
from .files import ModelReference, velocities_per_ps


COMMAND = "lmp -in input.lammps"
SKIN = 2.0
"""Of the neighbour lists, in Å."""
MIN_NEIGHBORS = 2000
"""Longest list of neighbours that LAMMPS expects by itself."""
CONDENSED = 0.1
"""Atoms in 1/Å^3 where there are atoms, in boxes that are partly empty."""

INPUT = """\
# Molecular dynamics with {forces} of a model.
units metal
atom_style atomic
boundary {boundary}
box tilt large
read_data structure.data

# For several processes: -var {several}
{variables}
{pair_style}
{pair_coeff}

neighbor {skin} bin
neigh_modify one {neighbors} page {page}

timestep {timestep}  # ps
{run_style}
{fixes}

thermo {interval}
thermo_style custom step time temp pe etotal econserve{pressure}
thermo_modify format float %.8f
dump trajectory all custom {interval} trajectory.lammpstrj id element xu yu zu
dump_modify trajectory element {symbols} sort id format float %.12g
restart {restart} restart.1 restart.2

run {steps}
"""

README = """\
Run, in this folder:

    {command}

or with several processes, which divide the structure into domains:

    mpirun -np 4 {command} -var {several}

One process uses copies of the models with an infinite range (*-one-process.pt): LAMMPS
then keeps periodic images up to the cutoff only, not up to the range of all layers of
the network, which takes several times less time. Such copies cannot be divided into
domains. Prefer several processes where the structure is many times larger than the
range ({range:.0f} angstrom), or does not fit into the memory of one device.
{kokkos}
Needs LAMMPS with the metatomic interface (ML-METATOMIC):
https://docs.metatensor.org/metatomic/latest/engines/lammps.html

One step of LAMMPS is an outer step of {n_inner} x {timestep} fs. {note}
Energies: log.lammps, structures: trajectory.lammpstrj.
"""


def input_files(
    atoms: ase.Atoms, settings: MDSettings, model: ModelReference
) -> dict[str, str]:
    """Texts of the files of a run, by name.

    :param atoms: structure with masses and momenta.
    :param settings: settings of the run.
    :param model: the model, where it lies now.
    :raises ValueError: if LAMMPS cannot do it.
    """
    boxed = in_box(atoms, settings, "LAMMPS").atoms
    types = AtomTypes(boxed)
    _check(settings, model)
    radius = max(_range(load_model(p, model.extensions)) for p in model.files)
    neighbors = _longest_neighbor_list(boxed, radius + SKIN)
    names = _names(model.named_in_folder())
    several = " -var ".join(f"{name} {path}" for name, path in names.items())
    npt = settings.ensemble == "npt"
    respa = settings.n_inner > 1
    inside = _non_conservative(model) if respa else "off"
    text = INPUT.format(
        forces="both forces" if respa else "the conservative force",
        boundary="p p p" if atoms.pbc.all() else "s s s",
        variables="\n".join(f"variable {n} index {p}" for n, p in _one_process(names)),
        several=several,
        pair_style=_pair_style(settings, model, inside),
        pair_coeff=_pair_coeff(settings, types),
        skin=SKIN,
        neighbors=neighbors,
        page=10 * neighbors,
        timestep=f"{settings.n_inner * settings.timestep / 1000.0:.10g}",
        run_style=RESPA.format(settings.n_inner) if respa else "run_style verlet",
        fixes=_fixes(settings, inside),
        interval=settings.outer_interval,
        pressure=" press vol" * npt,
        symbols=" ".join(types.symbols),
        restart=50 * settings.outer_interval,
        steps=settings.outer_steps,
    )
    readme = README.format(
        command=COMMAND,
        several=several,
        range=radius,
        kokkos="" if respa else KOKKOS,
        n_inner=settings.n_inner,
        timestep=settings.timestep,
        note=_NOTES[settings.ensemble],
    )
    return {
        "input.lammps": text,
        "structure.data": data_file(boxed, settings.cell == "triclinic"),
        "README.txt": readme,
    }


def _check(settings: MDSettings, model: ModelReference) -> None:
    if model.device is not None and ":" in model.device:
        raise ValueError(
            "LAMMPS distributes GPUs over its processes itself: use --device "
            f"{model.device.partition(':')[0]}"
        )


# ------------------------------------------------------------------------------- atoms


class AtomTypes:
    """Types of atoms: one for each element and mass.

    :param atoms: structure with masses.
    """

    def __init__(self, atoms: ase.Atoms) -> None:
        kinds = np.column_stack([atoms.numbers, atoms.get_masses()])
        rows, inverse = np.unique(kinds, axis=0, return_inverse=True)
        self.numbers: List[int] = [int(number) for number in rows[:, 0]]
        self.masses: List[float] = rows[:, 1].tolist()
        self.of_atoms: List[int] = (inverse.reshape(-1) + 1).tolist()
        """Type of each atom, counted from 1."""

    @property
    def symbols(self) -> List[str]:
        """Element of each type."""
        return [chemical_symbols[number] for number in self.numbers]


def data_file(atoms: ase.Atoms, triclinic: bool = False) -> str:
    """A structure for ``read_data``, in metal units, with masses and velocities.

    :param atoms: structure with lower triangular cell vectors.
    :param triclinic: make the box one whose angles can change, even if they are right.
    """
    types = AtomTypes(atoms)
    (xx, _, _), (xy, yy, _), (xz, yz, zz) = atoms.cell.array.tolist()
    lines = [
        "Written by dualforce",
        "",
        f"{len(atoms)} atoms",
        f"{len(types.numbers)} atom types",
        "",
        f"0.0 {xx!r} xlo xhi",
        f"0.0 {yy!r} ylo yhi",
        f"0.0 {zz!r} zlo zhi",
    ]
    if triclinic or any((xy, xz, yz)):
        lines.append(f"{xy!r} {xz!r} {yz!r} xy xz yz")
    lines += ["", "Masses", ""]
    for index, mass in enumerate(types.masses):
        lines.append(f"{index + 1} {mass!r}  # {types.symbols[index]}")
    lines += ["", "Atoms  # atomic", "", *_rows(atoms.positions, types.of_atoms)]
    lines += ["", "Velocities", "", *_rows(velocities_per_ps(atoms))]
    return "\n".join(lines) + "\n"


def _rows(vectors: Array, types: Optional[List[int]] = None) -> List[str]:
    kinds = [""] * len(vectors) if types is None else [f"{kind} " for kind in types]
    return [
        f"{index + 1} {kind}{x!r} {y!r} {z!r}"
        for index, (kind, (x, y, z)) in enumerate(
            zip(kinds, vectors.tolist(), strict=True)
        )
    ]


# ------------------------------------------------------------------------------- input


PAIR_STYLE = """\
# The direct force acts inside (level 1); outside (level 2) conservative less direct.
pair_style hybrid/overlay &
    metatomic_1 {direct}{keywords} non_conservative {kind} scale 1.0 &
    metatomic_2 {direct}{keywords} non_conservative {kind} scale -1.0 &
    metatomic_3 ${{model}}{keywords} non_conservative off scale 1.0"""

KOKKOS = """
On a GPU with a KOKKOS build of LAMMPS (it has no `run_style respa`, hence M = 1 only):

    lmp -k on g 1 -sf kk -pk kokkos newton on neigh half -in input.lammps
"""

RESPA = "run_style respa 2 {} hybrid 1 2 2"

MOMENTUM = """\
# Direct forces of this interface do not sum to zero.
fix momentum all momentum 1 linear 1 1 1"""


def _pair_style(settings: MDSettings, model: ModelReference, inside: str) -> str:
    # Uncertainties, where a model has them, would be computed with every direct force.
    keywords = " uncertainty_threshold off"
    if model.device is not None:
        keywords += f" device {model.device}"
    if model.variant is not None:
        keywords += f" variant {model.variant}"
    if model.extensions is not None:
        keywords += f" extensions {model.named_in_folder().extensions}"
    if settings.n_inner == 1:
        return f"pair_style metatomic ${{model}}{keywords}"
    return PAIR_STYLE.format(
        direct="${direct}" if model.direct_model else "${model}",
        keywords=keywords,
        kind=inside,
    )


def _non_conservative(model: ModelReference) -> str:
    """What LAMMPS takes inside of the model there: direct forces and stresses, direct
    forces alone, or neither."""
    outputs = model.direct_outputs()
    if not outputs:
        return "off"
    # Without a direct stress it takes the gradient of the energy for it.
    has_stress = any(name.partition("/")[0] == DIRECT_STRESS for name in outputs)
    return "on" if has_stress else "forces"


def _names(model: ModelReference) -> dict[str, str]:
    """Variables of the input, and the files of models they stand for."""
    names = {"model": model.model}
    if model.direct_model is not None:
        names["direct"] = model.direct_model
    return names


def _one_process(names: dict[str, str]) -> list[tuple[str, str]]:
    return [
        (variable, path.removesuffix(".pt") + "-one-process.pt")
        for variable, path in names.items()
    ]


def write_one_process_models(folder: Path, model: ModelReference) -> None:
    """Write copies of the models with an infinite interaction range.

    :param folder: folder of the inputs.
    :param model: the model, where it lies now.
    """
    names = _one_process(_names(model.named_in_folder()))
    for path, (_, name) in zip(model.files, names, strict=True):
        loaded = load_model(path, model.extensions)
        old = loaded.capabilities()
        capabilities = ModelCapabilities(
            outputs={
                n: old.outputs[n] for n in loaded._model_capabilities_outputs_names
            },
            atomic_types=old.atomic_types,
            interaction_range=math.inf,
            length_unit=old.length_unit,
            supported_devices=old.supported_devices,
            dtype=old.dtype,
        )
        module = _Copy(loaded.module, loaded.requested_neighbor_lists())
        copy = AtomisticModel(module.eval(), loaded.metadata(), capabilities)
        copy.save(str(folder / name))


class _Copy(torch.nn.Module):
    """An exported module that says again which neighbour lists it needs.

    :param module: the module.
    :param lists: neighbour lists it asks for.
    """

    lists: List[NeighborListOptions]

    def __init__(
        self, module: torch.nn.Module, lists: List[NeighborListOptions]
    ) -> None:
        super().__init__()
        self.module = module
        self.lists = [
            NeighborListOptions(each.cutoff, each.full_list, each.strict)
            for each in lists
        ]

    @torch.jit.export
    def requested_neighbor_lists(self) -> List[NeighborListOptions]:
        """Those of the module."""
        return self.lists

    def forward(
        self,
        systems: List[System],
        outputs: Dict[str, ModelOutput],
        selected_atoms: Optional[Labels] = None,
    ) -> Dict[str, TensorMap]:
        """What the module computes."""
        return self.module(systems, outputs, selected_atoms)


def _pair_coeff(settings: MDSettings, types: AtomTypes) -> str:
    numbers = " ".join(str(number) for number in types.numbers)
    if settings.n_inner == 1:
        return f"pair_coeff * * {numbers}"
    return "\n".join(f"pair_coeff * * metatomic_{i} {numbers}" for i in (1, 2, 3))


def _fixes(settings: MDSettings, inside: str) -> str:
    temperature = f"{settings.temperature} {settings.temperature}"
    seed = settings.seed + 1  # LAMMPS wants a positive one
    tau = settings.tau / 1000.0
    lines = ["fix integrate all nve"]
    if settings.ensemble == "nvt-langevin":
        damp = 1.0 / settings.friction
        lines.append(
            f"fix thermostat all langevin {temperature} {damp:.10g} {seed} tally yes"
        )
    elif settings.ensemble == "nvt-svr":
        lines.append(f"fix thermostat all temp/csvr {temperature} {tau:.10g} {seed}")
    elif settings.ensemble == "npt":
        style = BAROSTATS[settings.cell]
        pressure = f"{settings.pressure} {settings.pressure}"
        lines = [
            f"fix integrate all npt temp {temperature} {tau:.10g} "
            f"{style} {pressure} {settings.tau_p / 1000.0:.10g}"
        ]
    if inside != "off" and settings.ensemble != "nvt-langevin":
        lines.append(MOMENTUM)
    return "\n".join(lines)


BAROSTATS = {"isotropic": "iso", "orthorhombic": "aniso", "triclinic": "tri"}

_NOTES = {
    "nve": "",
    "nvt-langevin": "Friction and noise act\nonce in an outer step.",
    "nvt-svr": "Velocities are rescaled\nonce in an outer step (fix temp/csvr, package "
    "EXTRA-FIX).",
    "npt": "Temperature and pressure\nare kept by Nose-Hoover chains (fix npt), which "
    "act once in an outer step.",
}


def _longest_neighbor_list(atoms: ase.Atoms, radius: float) -> int:
    """What LAMMPS asks ``neigh_modify`` to allow for: twice the number of atoms that
    are on average in the range of the model, which counts its layers.

    :param radius: range and skin, in Å.
    """
    density = max(len(atoms) / atoms.get_volume(), CONDENSED)
    expected = 2.0 * density * 4.0 / 3.0 * math.pi * radius**3
    return max(MIN_NEIGHBORS, 1000 * math.ceil(1.2 * expected / 1000.0))


def _range(model: AtomisticModel) -> float:
    """Range within which LAMMPS searches neighbours, in Å."""
    total = float(model.capabilities().engine_interaction_range("angstrom"))
    if math.isfinite(total):
        return total
    lists = model.requested_neighbor_lists()
    return max(float(options.engine_cutoff("angstrom")) for options in lists)
