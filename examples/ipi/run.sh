#!/bin/sh
# Water in i-PI at 300 K. Run in the root of the repository, where water.pt is:
#     sh examples/ipi/run.sh
# Needs: pip install ".[ipi]"
set -e
dualforce inputs ipi water.pt data/water-xtb/held-out.xyz \
    --ensemble nvt-svr --temperature 300 --inner 4 --steps 400 -o water-ipi
cd water-ipi
i-pi input.xml
tail -n 3 run.out # step, time, conserved quantity, temperature, energies
