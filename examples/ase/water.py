"""Water in ASE, first at 300 K, then at constant energy.

Run in the root of the repository, where water.pt is: python examples/ase/water.py
"""

import ase.io
import numpy as np
from ase import units

import dualforce


rng = np.random.default_rng(0)
atoms = ase.io.read("data/water-xtb/held-out.xyz")
dualforce.fix_center_of_mass(atoms)
dualforce.set_thermal_momenta(atoms, temperature_K=300, rng=rng)
forces = dualforce.load_forces("water.pt")
forces.warm_up(atoms)

thermostat = {"temperature_K": 300, "tau": 50 * units.fs, "rng": rng}
heating = dualforce.RespaSVR(atoms, 0.5 * units.fs, forces, n_inner=4, **thermostat)
heating.run(100)  # outer steps, of 2 fs

run = dualforce.RespaVelocityVerlet(
    atoms, 0.5 * units.fs, forces, n_inner=4, logfile="-", loginterval=10
)
run.run(100)
print(
    f"Drift: {1000 * (run.conserved - run.start_conserved) / len(atoms):.2f} meV/atom"
)
