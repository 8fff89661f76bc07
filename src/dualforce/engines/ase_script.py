"""ASE: a script that its user goes on to edit."""

import ase
from ase.constraints import FixAtoms, FixCartesian

from ..md import MDSettings
from .files import STRUCTURE, ModelReference, as_extxyz


SCRIPT = '''\
"""Molecular dynamics with both forces of a model."""

import ase.io
{numpy}from ase import units

import dualforce


atoms = ase.io.read("{structure}")
forces = dualforce.load_forces({arguments})
forces.warm_up(atoms{stress})
{fix}
dynamics = dualforce.{run}(
    atoms,
    timestep={timestep} * units.fs,
    forces=forces,
    n_inner={n_inner},  # direct steps in an outer step{options}
    logfile="md.log",
    trajectory="md.traj",
    loginterval={interval},  # outer steps
)


def report():
    time = dynamics.get_time() / units.fs
    energy, kelvin = dynamics.conserved, atoms.get_temperature()
    print(f"{{time:10.1f}} fs {{energy:16.6f}} eV {{kelvin:8.1f}} K", flush=True)


dynamics.attach(report, interval={interval})
dynamics.run({steps})  # outer steps
'''

README = """\
Run, in this folder:

    python run.py

Needs: pip install dualforce

It prints time, conserved quantity and temperature, and writes md.log and md.traj.
For a run that can be interrupted and continued, use `dualforce md`.
"""

_TEMPERATURE = "temperature_K={temperature},"
_TAU = "tau={tau} * units.fs,"
_RUNS = {
    "nve": ("RespaVelocityVerlet", []),
    "nvt-langevin": (
        "RespaLangevin",
        [
            _TEMPERATURE,
            "friction={friction} / (1000 * units.fs),",
            "rng=np.random.default_rng([{seed}, 1]),",
        ],
    ),
    "nvt-svr": (
        "RespaSVR",
        [_TEMPERATURE, _TAU, "rng=np.random.default_rng([{seed}, 1]),"],
    ),
    "npt": (
        "RespaNPT",
        [
            _TEMPERATURE,
            "pressure={pressure} * units.bar,",
            _TAU,
            "tau_p={tau_p} * units.fs,",
            'cell="{cell}",',
            "rng=np.random.default_rng([{seed}, 1]),",
        ],
    ),
}


def input_files(
    atoms: ase.Atoms, settings: MDSettings, model: ModelReference
) -> dict[str, str]:
    """Texts of the files of a run, by name.

    :param atoms: structure with masses and momenta.
    :param settings: settings of the run.
    :param model: the model, where it lies now.
    :raises ValueError: if the structure has a constraint that its file cannot hold.
    """
    for constraint in atoms.constraints:
        if not isinstance(constraint, (FixAtoms, FixCartesian)):
            raise ValueError(
                f"the constraint {type(constraint).__name__} cannot be written to a "
                "file: remove it, and set it in the script"
            )
    fix = settings.ensemble != "nvt-langevin" and not atoms.constraints
    run, options = _RUNS[settings.ensemble]
    lines = ["\n    " + option.format(**vars(settings)) for option in options]
    script = SCRIPT.format(
        run=run,
        numpy="import numpy as np\n" * (settings.ensemble != "nve"),
        fix="dualforce.fix_center_of_mass(atoms)\n" * fix,
        structure=STRUCTURE,
        arguments=model.named_in_folder().arguments,
        stress=", stress=True" * (settings.ensemble == "npt"),
        timestep=settings.timestep,
        n_inner=settings.n_inner,
        options="".join(lines),
        interval=settings.outer_interval,
        steps=settings.outer_steps,
    )
    return {"run.py": script, STRUCTURE: as_extxyz(atoms), "README.txt": README}
