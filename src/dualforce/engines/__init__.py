"""Engines that run the dynamics: here and now with ASE, i-PI, OpenMM, LAMMPS."""
