"""Does memory grow over a long run?

    python benchmarks/memory.py MODEL STRUCTURE [--steps 100000]

Runs with four inner steps, log and trajectory, and prints the resident memory after
every tenth of the run.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import ase.io
import numpy as np
from ase import units
from ase.md.velocitydistribution import thermalize_momenta

from dualforce.forces import MetatomicForces
from dualforce.md import RespaSVR


N_INNER = 4


def resident() -> float:
    """Resident memory in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status does not tell the resident memory")


def main() -> None:
    """Run and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("structure", type=Path)
    parser.add_argument("--steps", type=int, default=100_000)
    arguments = parser.parse_args()
    atoms = ase.io.read(arguments.structure)
    thermalize_momenta(atoms, 300.0, rng=np.random.default_rng(0))
    print(f"{len(atoms)} atoms\n\n| steps of time | resident memory, MB |\n|---|---|")
    with TemporaryDirectory() as folder:
        dynamics = RespaSVR(
            atoms,
            0.5 * units.fs,
            MetatomicForces(arguments.model),
            N_INNER,
            temperature_K=300.0,
            tau=100.0 * units.fs,
            rng=0,
            logfile=f"{folder}/log",
            trajectory=f"{folder}/trajectory.traj",
            loginterval=100,
        )
        for tenth in range(1, 11):
            dynamics.run(arguments.steps // N_INNER // 10)
            print(f"| {tenth * arguments.steps // 10} | {resident():.0f} |", flush=True)


if __name__ == "__main__":
    main()
