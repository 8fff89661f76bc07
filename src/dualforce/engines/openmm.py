"""OpenMM: two forces in two force groups, for its multiple-time-step integrators.

The slow group is the correction, with the conservative energy, the fast one the direct
force, with no energy: the energy of the context is the conservative energy.
"""

import json
from collections.abc import Callable
from typing import Any, Tuple

import ase
import numpy as np
from ase import units

from ..forces import Array, ForceSource
from ..md import MDSettings
from .box import in_box
from .files import (
    STRUCTURE,
    ModelReference,
    as_extxyz,
    velocities_per_ps,
)
from .separate import SeparateForces


try:
    import openmm
    from openmm import app
    from openmm import unit as mm
except ImportError:
    openmm = None

SLOW, FAST = 0, 1
"""Force groups."""
BAROSTAT_INTERVAL = 25
"""Outer steps between attempts to change the volume, as is usual in OpenMM."""

ANGSTROM = 0.1  # nm
EV = units.mol / units.kJ  # kJ/mol


def openmm_simulation(
    atoms: ase.Atoms,
    forces: ForceSource,
    settings: MDSettings,
    platform: str = "Reference",
) -> Any:
    """A simulation that is ready to run; a step of it is an outer step.

    :param atoms: structure with masses and momenta.
    :param forces: the model.
    :param settings: settings of the run.
    :param platform: of OpenMM. All the work is done by the model, on its own device;
        ``Reference`` does the rest in double precision.
    :return: an ``openmm.app.Simulation``.
    :raises ImportError: if OpenMM is not installed.
    :raises ValueError: if OpenMM cannot do it.
    """
    _require_openmm()
    boxed = in_box(atoms, settings, "OpenMM").atoms
    system = make_system(boxed, forces, settings.n_inner)
    if settings.ensemble == "npt":
        system.addForce(_barostat(settings))
    if settings.ensemble == "nve":
        # Also tells reporters that the centre of mass has no temperature.
        system.addForce(openmm.CMMotionRemover())
    simulation = app.Simulation(
        _topology(boxed),
        system,
        make_integrator(settings),
        openmm.Platform.getPlatformByName(platform),
    )
    simulation.context.setPositions(ANGSTROM * boxed.positions)
    simulation.context.setVelocities(ANGSTROM * velocities_per_ps(boxed))
    return simulation


def make_system(atoms: ase.Atoms, forces: ForceSource, n_inner: int) -> Any:
    """Particles, box and both forces.

    :param atoms: structure; a periodic one has a cell in standard form
        (:func:`~dualforce.engines.box.in_box`).
    :param forces: the model.
    :param n_inner: inner steps in an outer step.
    :return: an ``openmm.System``.
    :raises ImportError: if OpenMM is not installed.
    """
    _require_openmm()
    system = openmm.System()
    for mass in atoms.get_masses():
        system.addParticle(mass)
    if atoms.pbc.all():
        system.setDefaultPeriodicBoxVectors(*_box_vectors(atoms))
    add_forces(system, atoms, forces, n_inner)
    return system


def add_forces(
    system: Any, atoms: ase.Atoms, forces: ForceSource, n_inner: int
) -> None:
    """Add the correction (group 0) and the direct force (group 1) to a system; where
    ``n_inner`` is 1, the conservative force alone (group 0).

    :param system: an ``openmm.System`` with the particles of ``atoms``.
    :param atoms: structure, for elements and periodicity.
    :param forces: the model.
    :param n_inner: inner steps in an outer step, so that outer points cost one pass.
    :raises ImportError: if OpenMM is not installed.
    """
    _require_openmm()
    separate = SeparateForces(forces, n_inner)

    def slow(atoms: ase.Atoms) -> Tuple[float, Array]:
        conservative = separate.conservative(atoms)
        assert conservative.energy is not None
        if n_inner == 1:
            return conservative.energy, conservative.forces
        difference = conservative.forces - separate.direct(atoms).forces
        return conservative.energy, difference

    def fast(atoms: ase.Atoms) -> Tuple[float, Array]:
        return 0.0, separate.direct(atoms).forces

    groups = {SLOW: slow} if n_inner == 1 else {SLOW: slow, FAST: fast}
    for group, evaluate in groups.items():
        force = openmm.PythonForce(_computation(atoms, evaluate))
        force.setUsesPeriodicBoundaryConditions(bool(atoms.pbc.all()))
        force.setForceGroup(group)
        system.addForce(force)


def _computation(
    atoms: ase.Atoms, evaluate: Callable[[ase.Atoms], Tuple[float, Array]]
) -> Callable[[Any], Tuple[float, Array]]:
    """``evaluate`` as OpenMM calls it, in its units."""
    present = atoms.copy()

    def compute(state: Any) -> Tuple[float, Array]:
        positions = state.getPositions(asNumpy=True).value_in_unit(mm.nanometer)
        present.positions = positions / ANGSTROM
        if present.pbc.all():
            vectors = state.getPeriodicBoxVectors(asNumpy=True)
            present.set_cell(vectors.value_in_unit(mm.nanometer) / ANGSTROM)
        energy, forces = evaluate(present)
        return energy * EV, forces * (EV / ANGSTROM)

    return compute


def make_integrator(settings: MDSettings) -> Any:
    """The integrator of OpenMM for an ensemble; its step is an outer step.

    :raises ImportError: if OpenMM is not installed.
    :raises ValueError: if it has none.
    """
    _require_openmm()
    _check(settings)
    step = settings.n_inner * settings.timestep * mm.femtosecond
    groups = [(SLOW, 1)]
    if settings.n_inner > 1:
        groups.append((FAST, settings.n_inner))
    if settings.ensemble == "nve":
        return openmm.MTSIntegrator(step, groups)
    integrator = openmm.MTSLangevinIntegrator(
        settings.temperature * mm.kelvin,
        settings.friction / mm.picosecond,
        step,
        groups,
    )
    integrator.setRandomNumberSeed(_seed(settings))
    return integrator


def _check(settings: MDSettings) -> None:
    if settings.ensemble == "nvt-svr":
        raise ValueError(
            "OpenMM has no stochastic velocity rescaling: use nvt-langevin, or another "
            "engine"
        )
    defaults = MDSettings()
    times = (settings.tau, settings.tau_p)
    if settings.ensemble == "npt" and times != (defaults.tau, defaults.tau_p):
        raise ValueError(
            "OpenMM keeps the temperature by Langevin dynamics and the pressure by "
            "Monte Carlo: set --friction, not --tau and --tau-p"
        )


def _barostat(settings: MDSettings) -> Any:
    pressure = settings.pressure * mm.bar
    rest = (settings.temperature * mm.kelvin, BAROSTAT_INTERVAL)
    if settings.cell == "isotropic":
        barostat = openmm.MonteCarloBarostat(pressure, *rest)
    elif settings.cell == "orthorhombic":
        vector = openmm.Vec3(1, 1, 1) * settings.pressure * mm.bar
        barostat = openmm.MonteCarloAnisotropicBarostat(
            vector, rest[0], True, True, True, BAROSTAT_INTERVAL
        )
    else:
        barostat = openmm.MonteCarloFlexibleBarostat(pressure, *rest)
    barostat.setRandomNumberSeed(_seed(settings))
    return barostat


def _seed(settings: MDSettings) -> int:
    """Zero means a random seed in OpenMM."""
    return settings.seed + 1


def _topology(atoms: ase.Atoms) -> Any:
    topology = app.Topology()
    residue = topology.addResidue("ALL", topology.addChain())
    for symbol in atoms.symbols:
        topology.addAtom(symbol, app.Element.getBySymbol(symbol), residue)
    if atoms.pbc.all():
        topology.setPeriodicBoxVectors(_box_vectors(atoms))
    return topology


def _box_vectors(atoms: ase.Atoms) -> Any:
    """Cell in nm. OpenMM refuses tilts that exceed half an edge by rounding alone."""
    cell = ANGSTROM * atoms.cell.array
    limits = 0.5 * np.diag(cell)
    tilts = np.clip(cell, -limits, limits)
    return mm.Quantity(np.where(np.eye(3), cell, tilts), mm.nanometer)


def _require_openmm() -> None:
    if openmm is None or not hasattr(openmm, "PythonForce"):
        raise ImportError(
            'OpenMM 8.4 or later is not installed: pip install "dualforce[openmm]"'
        )


# ------------------------------------------------------------------------------ inputs


SCRIPT = '''\
"""Both forces of a model in OpenMM."""

import ase.io
from openmm import app

import dualforce


atoms = ase.io.read("{structure}")
forces = dualforce.load_forces({arguments})
settings = {settings}

simulation = dualforce.openmm_simulation(atoms, forces, settings)
interval = settings.outer_interval
simulation.reporters += [
    app.StateDataReporter(
        "log.csv",
        interval,
        step=True,
        time=True,
        potentialEnergy=True,
        totalEnergy=True,
        temperature=True,{volume}
    ),
    app.XTCReporter("trajectory.xtc", interval),
    app.CheckpointReporter("checkpoint.chk", 100 * interval),
]
with open("topology.pdb", "w") as file:
    state = simulation.context.getState(getPositions=True)
    app.PDBFile.writeFile(simulation.topology, state.getPositions(), file)

simulation.step(settings.outer_steps)
'''

README = """\
Run, in this folder:

    python run.py

Needs: pip install "dualforce[openmm]"

One step of OpenMM is an outer step of {n_inner} x {timestep} fs. Energies (kJ/mol):
log.csv, structures: trajectory.xtc, with topology.pdb.{barostat}
"""

BAROSTAT = f"""

The temperature is kept by Langevin dynamics (--friction), the pressure by Monte Carlo
every {BAROSTAT_INTERVAL} steps, which scales the positions of all atoms; --tau and
--tau-p do not apply."""


def input_files(
    atoms: ase.Atoms, settings: MDSettings, model: ModelReference
) -> dict[str, str]:
    """Texts of the files of a run, by name.

    :param atoms: structure with masses and momenta.
    :param settings: settings of the run.
    :param model: the model, where it lies now.
    :raises ValueError: if OpenMM cannot do it.
    """
    _check(settings)
    in_box(atoms, settings, "OpenMM")
    npt = settings.ensemble == "npt"
    script = SCRIPT.format(
        structure=STRUCTURE,
        arguments=model.named_in_folder().arguments,
        settings=_as_code(settings),
        volume="\n        volume=True," * npt,
    )
    readme = README.format(
        n_inner=settings.n_inner,
        timestep=settings.timestep,
        barostat=BAROSTAT * npt,
    )
    return {"run.py": script, STRUCTURE: as_extxyz(atoms), "README.txt": readme}


def _as_code(settings: MDSettings) -> str:
    used = ["ensemble", "temperature", "timestep", "n_inner", "steps", "interval"]
    if settings.ensemble != "nve":
        used += ["friction", "seed"]
    if settings.ensemble == "npt":
        used += ["pressure", "cell"]
    lines = [f"    {name}={json.dumps(getattr(settings, name))},\n" for name in used]
    return f"dualforce.MDSettings(\n{''.join(lines)})"
