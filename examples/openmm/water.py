"""Water in OpenMM at 300 K.

Run in the root of the repository, where water.pt is: python examples/openmm/water.py
Needs: pip install ".[openmm]"
"""

import sys

import ase.io
from openmm import app

import dualforce


settings = dualforce.MDSettings(
    ensemble="nvt-langevin", temperature=300, n_inner=4, steps=400
)
atoms = dualforce.start_structure(ase.io.read("data/water-xtb/held-out.xyz"), settings)
forces = dualforce.load_forces("water.pt")
simulation = dualforce.openmm_simulation(atoms, forces, settings)
simulation.reporters.append(
    app.StateDataReporter(
        sys.stdout,
        settings.outer_interval,
        time=True,
        potentialEnergy=True,
        temperature=True,
    )
)
simulation.step(settings.outer_steps)
