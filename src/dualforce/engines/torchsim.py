"""torch-sim: a script that runs several replicas at once."""

from typing import List

import ase
import numpy as np
from ase.constraints import FixAtoms

from ..md import MDSettings, fix_center_of_mass, set_thermal_momenta
from .files import ModelReference, as_extxyz


STRUCTURES = "replicas.extxyz"

REPLICAS = 8
"""Replicas, unless a number is given."""

SCRIPT = '''\
"""Several replicas of a system in torch-sim, with both forces of a model."""

from dataclasses import asdict
from pathlib import Path

import ase.io
import torch
import torch_sim

from dualforce import torchsim


picosecond = torch_sim.units.MetalUnits.time
model = torchsim.load_model({arguments})
done, saved = 0, Path("state.pt")
if saved.exists():  # go on with a run that has ended
    done, values = torch.load(saved, weights_only=False)
    state = torchsim.{state}(**values)
else:
    frames = ase.io.read("{structures}", ":")
    state = torchsim.state_from_atoms(frames, model.device)
    state.rng = {seed}

reporter = torch_sim.TrajectoryReporter(
    [f"replica-{{int(number)}}.h5md" for number in state.replica],
    state_frequency={interval},  # outer steps
    state_kwargs={{"save_velocities": True}},
    prop_calculators={{
        {interval}: {{
            "energy": lambda state: state.energy,
            "conserved": lambda state: state.conserved,
            "temperature": lambda state: state.calc_temperature(),
        }}
    }},
    trajectory_kwargs={{"mode": "a" if done else "w"}},
)
if done:
    reporter.truncate_to_step(done)

steps = {steps}  # outer steps
final = torch_sim.integrate(
    state,
    model,
    integrator=(torchsim.{name}_init, torchsim.{name}_step),
    n_steps=steps,
    n_inner={n_inner},  # direct steps in an outer step
    timestep={timestep},  # of an inner step, in ps
    temperature={temperature},{coupling}
    autobatcher=model.device.type == "cuda",  # as many at once as fit in its memory
    trajectory_reporter=reporter,
    pbar={{"disable": None}},
)
torch.save((done + steps, asdict(final)), saved)
ase.io.write("final.extxyz", torchsim.atoms_from_state(final))

drifts = 1000 * (final.conserved - final.start_conserved) / final.n_atoms_per_system
for number, drift, failed in zip(final.replica, drifts, final.failed):
    remark = ", stopped early" if failed else ""
    print(f"replica {{int(number)}}: drift {{float(drift):.2f}} meV/atom{{remark}}")
'''

README = """\
Run, in this folder:

    python run.py

Needs: pip install "dualforce[torchsim]", with Python 3.12 or later

All structures in {structures} run at once; replace them by others if you like, of any
size. The first has the velocities of the structure the folder was made for, the others
have velocities drawn at {temperature:g} K. A step of torch-sim is an outer step of
{n_inner} x {timestep:g} fs.

Each replica has a trajectory, replica-NUMBER.h5md, with velocities, energy (eV),
conserved quantity (eV) and temperature (K); read it by torch_sim.TorchSimTrajectory.
Last structures: final.extxyz. Run again, it goes on from state.pt, as if it had not
ended (on a CPU, bitwise identical).

A replica that cannot go on stops at its last good structure, with a warning; the others
run to the end.
"""

_NAMES = {
    "nve": "respa_nve",
    "nvt-langevin": "respa_nvt_langevin",
    "nvt-svr": "respa_nvt_vrescale",
}


def input_files(
    atoms: ase.Atoms,
    settings: MDSettings,
    model: ModelReference,
    replicas: int = REPLICAS,
) -> dict[str, str]:
    """Texts of the files of a run, by name.

    :param atoms: structure with masses and momenta.
    :param settings: settings of the run.
    :param model: the model, where it lies now.
    :param replicas: structures that run together; they differ in velocities.
    :raises ValueError: if torch-sim cannot do it.
    """
    _check(atoms, settings, replicas)
    assert model.files  # exported models only
    langevin = settings.ensemble == "nvt-langevin"
    interval = settings.outer_interval
    # whole intervals, so that what is saved at the end is in the trajectories
    steps = interval * -(-settings.outer_steps // interval)
    script = SCRIPT.format(
        arguments=model.named_in_folder().arguments,
        structures=STRUCTURES,
        state="RespaLangevinState" if langevin else "RespaState",
        seed=settings.seed,
        name=_NAMES[settings.ensemble],
        steps=steps,
        n_inner=settings.n_inner,
        timestep=settings.timestep / 1000.0,
        temperature=settings.temperature,
        coupling=_coupling(settings),
        interval=interval,
    )
    readme = README.format(structures=STRUCTURES, **vars(settings))
    texts = [as_extxyz(replica) for replica in _replicas(atoms, settings, replicas)]
    return {"run.py": script, STRUCTURES: "".join(texts), "README.txt": readme}


def _check(atoms: ase.Atoms, settings: MDSettings, replicas: int) -> None:
    if settings.ensemble not in _NAMES:
        raise ValueError(
            f"{settings.ensemble} with two forces is not there for torch-sim: use "
            f"{', '.join(_NAMES)}"
        )
    if replicas < 1:
        raise ValueError(f"replicas must be 1, 2, 3, ..., not {replicas}")
    for constraint in atoms.constraints:
        if not isinstance(constraint, FixAtoms):
            raise ValueError(
                f"the constraint {type(constraint).__name__} is not carried over to "
                "torch-sim: remove it (FixAtoms is)"
            )


def _coupling(settings: MDSettings) -> str:
    if settings.ensemble == "nvt-langevin":
        return f"\n    gamma={settings.friction} / picosecond,"
    if settings.ensemble == "nvt-svr":
        return f"\n    tau={settings.tau / 1000.0} * picosecond,"
    return ""


def _replicas(atoms: ase.Atoms, settings: MDSettings, number: int) -> List[ase.Atoms]:
    """Copies with velocities of their own; the first one keeps those it has."""
    copies = []
    for index in range(number):
        copy = atoms.copy()
        if index > 0:
            rng = np.random.default_rng([settings.seed, 2, index])
            set_thermal_momenta(copy, settings.temperature, rng)
        if settings.ensemble != "nvt-langevin" and not copy.constraints:
            fix_center_of_mass(copy)
            copy.set_constraint()
        copies.append(copy)
    return copies
