"""Water in OpenMM at 300 K.

Run in the root of the repository, where water.pt is: python examples/openmm/water.py
Needs: pip install ".[openmm]"
"""

import sys

import ase.io
from openmm import app

from dualforce.dynamics import HybridForces
from dualforce.engines.files import start_structure
from dualforce.engines.openmm import make_simulation
from dualforce.engines.settings import MDSettings


settings = MDSettings(ensemble="nvt-langevin", temperature=300, n_inner=4, steps=400)
atoms = start_structure(ase.io.read("data/water-xtb/held-out.xyz"), settings)
simulation = make_simulation(atoms, HybridForces("water.pt"), settings)
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
