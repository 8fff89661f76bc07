"""The choice of the number of inner steps."""

import json
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import units
from click.testing import CliRunner
from helpers import make_model, random_cell
from potentials import argon

from dualforce.cli import main
from dualforce.dynamics.statistics import mean_with_error, slope_with_error
from dualforce.dynamics.tuning import tune


def test_limit_of_a_rough_force_is_found() -> None:
    """A direct force with a strong curl stands fewer inner steps than one that is
    close to the conservative force, and what is recommended does not drift."""
    limits = {}
    for curl in (0.0002, 0.5):
        atoms, forces = argon(curl=curl)
        result = tune(
            forces,
            atoms,
            timestep=5.0 * units.fs,
            temperature_K=60.0,
            tolerance=0.02,
            seconds=5.0,
        )
        assert result.candidates[0].n_inner == 1
        assert result.recommended is not None
        limits[curl] = result.recommended
        chosen = next(
            row for row in result.candidates if row.n_inner == result.recommended
        )
        assert chosen.is_good
        difference = chosen.drift[0] - result.candidates[0].drift[0]
        assert abs(difference) <= 0.02
    assert limits[0.5] <= 4 < limits[0.0002]


def test_timestep_that_is_too_long() -> None:
    """Where even conservative forces fail, nothing is recommended."""
    atoms, forces = argon()
    result = tune(
        forces,
        atoms,
        timestep=60.0 * units.fs,
        temperature_K=300.0,
        tolerance=0.01,
        seconds=4.0,
    )
    assert result.recommended is None
    assert len(result.candidates) == 1


def test_slopes_have_honest_errors() -> None:
    """The slope of a line under correlated noise lies within its error as often as a
    normal error says."""
    rng = np.random.default_rng(0)
    times = np.linspace(0.0, 10.0, 2000)
    inside = 0
    for _ in range(200):
        noise = np.convolve(rng.normal(size=2050), np.ones(51) / 51, mode="valid")
        slope, error = slope_with_error(times, 0.3 * times + noise)
        inside += abs(slope - 0.3) < error
    assert 0.5 < inside / 200 < 0.8


def test_means_have_honest_errors() -> None:
    """Likewise the mean."""
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(200):
        noise = np.convolve(rng.normal(size=2050), np.ones(51) / 51, mode="valid")
        mean, error = mean_with_error(1.0 + noise)
        inside += abs(mean - 1.0) < error
    assert 0.5 < inside / 200 < 0.8


def test_command(tmp_path: Path) -> None:
    """Table, plot and numbers are written, and not overwritten."""
    model, structure = tmp_path / "small.pt", tmp_path / "structure.xyz"
    make_model().export().save(str(model))
    ase.io.write(structure, random_cell(8, 6.0, seed=1), format="extxyz")
    arguments = ["tune", str(model), str(structure), "--minutes", "0.15"]
    arguments += ["--timestep", "0.1", "--temperature", "50", "-o", str(tmp_path)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "tune.json").read_text())
    assert content["settings"]["timestep_fs"] == 0.1
    assert [row["n_inner"] for row in content["candidates"]][:2] == [1, 2]
    assert (tmp_path / "tune.png").read_bytes().startswith(b"\x89PNG")
    assert "drift (meV/atom/ps)" in result.output
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1 and "holds tune.json already" in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--timestep", "-1"], "timestep must be positive"),
        (["--tolerance", "0"], "tolerance must be positive"),
        (["--hydrogen-mass", "-1"], "mass of hydrogen must be positive"),
    ],
)
def test_refusals(options: list[str], message: str, tmp_path: Path) -> None:
    """Options that make no sense."""
    model, structure = tmp_path / "small.pt", tmp_path / "structure.xyz"
    make_model().export().save(str(model))
    ase.io.write(structure, random_cell(8, 6.0, seed=1), format="extxyz")
    result = CliRunner().invoke(main, ["tune", str(model), str(structure), *options])
    assert result.exit_code == 1
    assert message in result.output
