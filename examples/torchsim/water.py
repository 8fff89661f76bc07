"""Eight replicas of water at 300 K in torch-sim.

Run in the root of the repository, where water.pt is: python examples/torchsim/water.py
Needs: pip install ".[torchsim]", with Python 3.12 or later
"""

import ase.io
import torch_sim

from dualforce import torchsim


model = torchsim.load_model("water.pt")
frames = ase.io.read("data/water-xtb/held-out.xyz", ":8")
state = torchsim.state_from_atoms(frames, model.device)
state.rng = 0  # of velocities and thermostat

final = torch_sim.integrate(
    state,
    model,
    integrator=(torchsim.respa_nvt_vrescale_init, torchsim.respa_nvt_vrescale_step),
    n_steps=100,  # outer steps
    n_inner=4,  # direct steps in an outer step
    timestep=0.0005,  # of an inner step, in ps
    temperature=300,
    tau=0.1 * torch_sim.units.MetalUnits.time,
    pbar=True,
)

drifts = 1000 * (final.conserved - final.start_conserved) / final.n_atoms_per_system
temperatures = final.calc_temperature()
for number, drift, kelvin in zip(final.replica, drifts, temperatures, strict=True):
    print(f"replica {number}: {kelvin:.0f} K, drift {drift:.2f} meV/atom")
