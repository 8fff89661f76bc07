"""The settings of a run, as options of commands."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, get_args

import click

from ..engines import ModelReference
from ..engines.tuned import SAFE, inner_steps, tuned_timestep
from ..md.run_folder import RunFolder
from ..md.settings import CellShape, Ensemble, MDSettings


_OPTIONS: dict[str, tuple[str, Any, str]] = {
    "ensemble": ("--ensemble", click.Choice(get_args(Ensemble)), "What is kept."),
    "temperature": (
        "--temperature",
        float,
        "In K; of initial velocities too, where the structure has none. If not given, "
        "what a folder of `dualforce accelerate` was made for, otherwise "
        f"{MDSettings.temperature:g}.",
    ),
    "pressure": ("--pressure", float, "In bar; for npt."),
    "timestep": (
        "--timestep",
        float,
        "Inner step in fs; if not given, that with which `dualforce tune` has found "
        f"the inner steps of the model, otherwise {MDSettings.timestep:g}.",
    ),
    "n_inner": (
        "--inner",
        int,
        "Inner steps in an outer step (M); if not given, what `dualforce tune` has "
        f"found for the model, otherwise {SAFE}.",
    ),
    "steps": ("--steps", int, "Inner steps in all."),
    "friction": ("--friction", float, "In 1/ps; for nvt-langevin."),
    "tau": ("--tau", float, "Of the thermostat, in fs; for nvt-svr and npt."),
    "tau_p": ("--tau-p", float, "Of the cell, in fs; for npt."),
    "cell": ("--cell", click.Choice(get_args(CellShape)), "What changes; for npt."),
    "hydrogen_mass": (
        "--hydrogen-mass",
        float,
        "New mass of hydrogen in u, taken from its neighbours.",
    ),
    "seed": ("--seed", int, "Of velocities and thermostats."),
    "interval": ("--interval", int, "Inner steps between frames."),
}


_CHOSEN = ("temperature", "timestep", "n_inner")
"""Settings whose default depends on the model."""


def setting_option(name: str, default: Any) -> Callable[..., Any]:
    """The option of one setting."""
    flag, kind, text = _OPTIONS[name]
    return click.option(flag, name, type=kind, default=default, help=text)


def settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option for each setting; the command takes them together, as ``settings``,
    a :class:`~dualforce.md.settings.MDSettings`."""

    @functools.wraps(command)
    def with_settings(**options: Any) -> Any:
        values = {name: options.pop(name) for name in _OPTIONS}
        if options.get("resume"):
            _take_those_of(RunFolder(options["output"]), values)
        _choose(values, options["model"])
        return command(settings=MDSettings(**values), **options)

    decorated: Callable[..., Any] = with_settings
    for field in reversed(dataclasses.fields(MDSettings)):
        default = None if field.name in _CHOSEN else field.default
        decorated = setting_option(field.name, default)(decorated)
    return decorated


def _take_those_of(run: RunFolder, values: dict[str, Any]) -> None:
    """Let a run that is resumed keep the settings that nobody gives."""
    for name in _CHOSEN:
        if values[name] is None:
            values[name] = run.setting(name)


def _choose(values: dict[str, Any], model: ModelReference) -> None:
    """Fill in what was found for the model, or a safe value."""
    mass = values["hydrogen_mass"]
    if values["temperature"] is None:
        values["temperature"] = model.temperature or MDSettings.temperature
    if values["timestep"] is None:
        found = tuned_timestep(model, hydrogen_mass=mass)
        values["timestep"] = found or MDSettings.timestep
    if values["n_inner"] is None:
        # With this setting alone, so that a timestep that makes no sense is refused.
        timestep = MDSettings(timestep=values["timestep"]).timestep
        values["n_inner"], sentence = inner_steps(
            model, timestep=timestep, hydrogen_mass=mass
        )
        click.echo(sentence)
