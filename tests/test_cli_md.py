"""Runs from the command line: files, interrupts, refusals."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, List

import ase.io
import numpy as np
import pytest
from ase import units
from click.testing import CliRunner, Result
from helpers import make_model, random_cell

from dualforce.cli import main
from dualforce.forces import MetatomicForces
from dualforce.md import RespaVelocityVerlet


RUN = ["--temperature", "50", "--timestep", "0.25", "--inner", "4", "--interval", "8"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> List[str]:
    """A small untrained model, and a structure."""
    folder = tmp_path_factory.mktemp("files")
    make_model().export().save(str(folder / "small.pt"))
    ase.io.write(folder / "structure.xyz", random_cell(10, 7.0, seed=1))
    return [str(folder / "small.pt"), str(folder / "structure.xyz")]


def call(files: List[str], folder: Path, *options: str) -> Result:
    """Run ``dualforce md``."""
    arguments = ["md", *files, *RUN, "-o", str(folder), *options]
    return CliRunner().invoke(main, arguments)


def log_of(folder: Path) -> List[Dict[str, str]]:
    """Lines of the log."""
    with (folder / "log.csv").open() as file:
        return list(csv.DictReader(file))


def same_run(a: Path, b: Path) -> None:
    """Two folders hold the same run, in every byte."""
    for name in ("trajectory.extxyz", "log.csv", "final.extxyz"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


def test_files_of_a_run(files: List[str], tmp_path: Path) -> None:
    """Trajectory, log and final structure are those of the integrator."""
    result = call(files, tmp_path / "run", "--steps", "80")
    assert result.exit_code == 0, result.output
    assert "meV/atom/ps" in result.output and "ns/day" in result.output
    frames = ase.io.read(tmp_path / "run" / "trajectory.extxyz", ":")
    rows = log_of(tmp_path / "run")
    assert len(frames) == len(rows) == 11

    atoms = frames[0].copy()
    atoms.set_momenta(frames[0].get_momenta())
    run = RespaVelocityVerlet(atoms, 0.25 * units.fs, MetatomicForces(files[0]), 4)
    run.run(20)
    np.testing.assert_allclose(frames[-1].positions, atoms.positions, atol=1e-6)
    assert float(frames[-1].get_potential_energy()) == pytest.approx(
        run.point.conservative.energy, abs=1e-6
    )
    description = json.loads((tmp_path / "run" / "run.json").read_text())
    assert description["run"]["n_inner"] == 4


@pytest.mark.parametrize("ensemble", ["nve", "nvt-langevin", "nvt-svr", "npt"])
def test_extended_run_is_a_longer_run(
    ensemble: str, files: List[str], tmp_path: Path
) -> None:
    """A run that is extended equals one that was as long from the start."""
    options = ["--ensemble", ensemble]
    assert call(files, tmp_path / "long", *options, "--steps", "160").exit_code == 0
    assert call(files, tmp_path / "two", *options, "--steps", "104").exit_code == 0
    result = call(files, tmp_path / "two", *options, "--steps", "160", "--resume")
    assert result.exit_code == 0, result.output
    same_run(tmp_path / "long", tmp_path / "two")


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_run(kind: int, files: List[str], tmp_path: Path) -> None:
    """A run that is interrupted or killed ends as an unbroken one."""
    options = ["--ensemble", "nvt-langevin", "--steps", "1600"]
    assert call(files, tmp_path / "whole", *options).exit_code == 0
    folder = tmp_path / "broken"
    process = subprocess.Popen(
        [sys.executable, "-c", "from dualforce.cli import main; main()", "md"]
        + [*files, *RUN, "-o", str(folder), *options],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 60.0
    while not (folder / "log.csv").exists() or len(log_of(folder)) < 30:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(kind)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert kind == signal.SIGKILL or b"--resume" in errors
    assert not (folder / "final.extxyz").exists()
    result = call(files, folder, *options, "--resume")
    assert result.exit_code == 0, result.output
    same_run(tmp_path / "whole", folder)


def test_refusals(files: List[str], tmp_path: Path) -> None:
    """Nothing is overwritten, and a run is not continued as another one."""
    folder = tmp_path / "run"
    result = call(files, folder, "--steps", "8", "--resume")
    assert result.exit_code == 1 and "no run to resume" in result.output
    assert call(files, folder, "--steps", "8").exit_code == 0
    before = (folder / "log.csv").read_bytes()
    result = call(files, folder, "--steps", "8")
    assert result.exit_code == 1 and "--resume" in result.output
    result = call(files, folder, "--steps", "16", "--seed", "3", "--resume")
    assert result.exit_code == 1 and "seed was 0, now 3" in result.output
    assert (folder / "log.csv").read_bytes() == before
    for options, message in (
        (["--timestep", "0"], "timestep must be positive"),
        (["--inner", "0"], "n_inner must be 1, 2, 3"),
        (["--steps", "-5"], "steps must be 1, 2, 3"),
    ):
        result = call(files, tmp_path / "other", *options)
        assert result.exit_code == 1 and message in result.output
        assert not (tmp_path / "other").exists()


def test_failing_run_leaves_the_last_good_structure(
    files: List[str], tmp_path: Path
) -> None:
    """A step that is much too long ends with a sentence and a structure."""
    options = ["--timestep", "50", "--temperature", "3000", "--steps", "400"]
    result = call(files, tmp_path / "run", *options)
    assert result.exit_code == 1
    assert "the run failed in outer step" in result.output
    last = ase.io.read(tmp_path / "run" / "last-good.extxyz")
    assert np.isfinite(last.positions).all()
