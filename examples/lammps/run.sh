#!/bin/sh
# Water in LAMMPS at 300 K. Run in the root of the repository, where water.pt is:
#     sh examples/lammps/run.sh
# Needs LAMMPS with the metatomic interface:
# https://docs.metatensor.org/metatomic/latest/engines/lammps.html
set -e
dualforce inputs lammps water.pt data/water-xtb/held-out.xyz \
    --ensemble nvt-svr --temperature 300 --inner 4 --steps 400 -o water-lammps
cd water-lammps
lmp -in input.lammps
