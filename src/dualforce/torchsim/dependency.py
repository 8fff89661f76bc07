"""What is used of torch-sim, or a sentence where it is not installed."""

try:
    from torch_sim.constraints import FixAtoms
    from torch_sim.integrators.md import MDState, initialize_momenta
    from torch_sim.io import atoms_to_state
    from torch_sim.models.interface import ModelInterface
    from torch_sim.state import SimState
except ImportError as error:
    raise ImportError(
        "torch-sim 0.6 is not installed, or cannot be imported "
        f'({error}): pip install "dualforce[torchsim]". It needs Python 3.12 or later'
    ) from error


__all__ = [
    "FixAtoms",
    "MDState",
    "ModelInterface",
    "SimState",
    "atoms_to_state",
    "initialize_momenta",
]
