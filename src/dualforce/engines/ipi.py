"""i-PI: a driver that shares evaluations between force components, and inputs."""

import os
from typing import Any, Optional, Tuple
from weakref import WeakValueDictionary

import ase
import ase.io
import numpy as np

from ..forces import DIRECT_FORCE, Array, Evaluation
from ..md import MDSettings
from .box import in_box
from .files import STRUCTURE, ModelReference, as_extxyz
from .separate import SeparateForces


COMMAND = "i-pi input.xml"

_evaluators: "WeakValueDictionary[Tuple[Any, ...], SeparateForces]" = (
    WeakValueDictionary()
)


class IPIDriver:
    """Driver for i-PI's ``<pes>custom</pes>``.

    Two force fields with this driver, for a conservative and a direct force component,
    evaluate the model once where both are needed.

    :param template: structure with the elements, in a format of ASE.
    :param model: exported model, or ``module:callable`` for a calculator of ASE.
    :param force: ``conservative`` or ``direct``.
    :param n_inner: direct evaluations in an outer step.
    :param stress: compute virials; without it they are not a number.
    :param direct_model: likewise, to take direct forces from.
    :param device: torch device.
    :param variant: variant of the outputs.
    :param extensions: folder with compiled extensions of the models.
    :raises ValueError: if ``force`` is unknown.
    :raises ImportError: if i-PI is not installed.
    """

    def __init__(
        self,
        template: str,
        model: str,
        force: str,
        n_inner: int = 1,
        stress: bool = False,
        direct_model: Optional[str] = None,
        device: Optional[str] = None,
        variant: Optional[str] = None,
        extensions: Optional[str] = None,
        **_: Any,  # i-PI adds its own
    ) -> None:
        try:
            from ipi.utils.units import unit_to_internal, unit_to_user
        except ImportError as error:
            raise ImportError(
                'i-PI is not installed: pip install "dualforce[ipi]"'
            ) from error
        if force not in ("conservative", "direct"):
            raise ValueError(f"force must be conservative or direct, not '{force}'")
        self._angstrom = unit_to_user("length", "angstrom", 1.0)
        self._energy = unit_to_internal("energy", "electronvolt", 1.0)
        self._force = self._energy * self._angstrom
        self._direct = force == "direct"
        self._stress = stress
        self._atoms = _template(template)
        # Paths are relative, and a process may run several folders.
        reference = ModelReference(model, direct_model, device, variant, extensions)
        key = (os.getcwd(), template, reference, n_inner, stress)
        if key not in _evaluators:
            self._evaluator = SeparateForces(reference.load(), n_inner, stress)
            _evaluators[key] = self._evaluator
        self._evaluator = _evaluators[key]

    def __call__(self, cell: Any, pos: Any) -> Any:
        """Energy, forces, virial and extras of a structure, or of each of a list.

        :param cell: cell vectors as columns, in bohr.
        :param pos: positions in bohr, shape ``[n_atoms, 3]``.
        """
        if isinstance(cell, list):
            return [
                self(one_cell, one) for one_cell, one in zip(cell, pos, strict=True)
            ]
        self._atoms.set_cell(cell.T * self._angstrom)
        self._atoms.positions = pos * self._angstrom
        if self._direct:
            result = self._evaluator.direct(self._atoms)
        else:
            result = self._evaluator.conservative(self._atoms)
        # The energy of the direct component has no weight anywhere.
        energy = 0.0 if result.energy is None else result.energy
        forces = result.forces * self._force
        return energy * self._energy, forces, self._virial(result), "{}"

    def _virial(self, result: Evaluation) -> Array:
        if not self._stress:
            return np.full((3, 3), np.nan)
        if result.stress is None:  # then the conservative one acts, outside alone
            return np.zeros((3, 3))
        return -result.stress * self._atoms.get_volume() * self._energy


def _template(path: str) -> ase.Atoms:
    atoms = ase.io.read(path)
    assert isinstance(atoms, ase.Atoms)
    return atoms


# ------------------------------------------------------------------------------ inputs


DRIVER = '''\
"""Both forces of a model for i-PI."""

from dualforce import IPIDriver


__DRIVER_NAME__ = "dualforce"
__DRIVER_CLASS__ = "IPIDriver"
'''

INPUT = """\
<simulation verbosity="medium" threading="false">
  <output prefix="run">
    <properties stride="{interval}" filename="out"> [{properties}] </properties>
    <trajectory filename="pos" stride="{interval}" format="ase"> positions </trajectory>
    <checkpoint stride="{interval}"/>
  </output>
  <total_steps> {steps} </total_steps>
  <prng> <seed> {seed} </seed> </prng>
{force_fields}
  <system>
    <initialize nbeads="1">
      <file mode="ase"> {structure} </file>
      <velocities mode="xyz"> velocities.xyz </velocities>
    </initialize>
    <forces>
{components}
    </forces>
    <ensemble>
      <temperature units="kelvin"> {temperature} </temperature>{pressure}
    </ensemble>
    <motion mode="dynamics">
      <fixcom> {fixcom} </fixcom>
      <dynamics mode="{mode}"{splitting}>
        <timestep units="femtosecond"> {timestep} </timestep>{nmts}
{coupling}
      </dynamics>
    </motion>
  </system>
</simulation>
"""

# Weights at the outer and at the inner level.
COMPONENTS = """\
      <force forcefield="conservative"> <mts_weights> [1, 0] </mts_weights> </force>
      <force forcefield="direct"> <mts_weights> [-1, 1] </mts_weights> </force>"""
PRESSURE = '\n      <pressure units="bar"> {} </pressure>'
PROPERTIES = [
    "step",
    "time{picosecond}",
    "conserved{electronvolt}",
    "temperature{kelvin}",
    "kinetic_md{electronvolt}",
    "potential{electronvolt}",
]


def input_files(
    atoms: ase.Atoms, settings: MDSettings, model: ModelReference, stock: bool = False
) -> dict[str, str]:
    """Texts of the files of a run, by name.

    :param atoms: structure with masses and momenta.
    :param settings: settings of the run.
    :param model: the model, where it lies now.
    :param stock: write for the metatomic driver that comes with i-PI: it needs no
        ``dualforce``, and one direct evaluation in an outer step more.
    :raises ValueError: if i-PI cannot do it.
    """
    boxed = in_box(atoms, settings, "i-PI").atoms
    if stock:
        _check_stock(model, settings)
    if stock and not atoms.pbc.all():
        raise ValueError(
            "the metatomic driver of i-PI takes every structure as periodic: give the "
            "molecule a large periodic cell, or leave --stock"
        )
    npt = settings.ensemble == "npt"
    mts = settings.n_inner > 1
    text = INPUT.format(
        interval=settings.outer_interval,
        properties=", ".join(PROPERTIES + ["volume", "pressure_md{bar}"] * npt),
        steps=settings.outer_steps,
        seed=settings.seed,
        structure=STRUCTURE,
        force_fields=_force_fields(settings, model, stock),
        components=COMPONENTS if mts else '      <force forcefield="conservative"/>',
        temperature=settings.temperature,
        pressure=f'\n      <pressure units="bar"> {settings.pressure} </pressure>'
        * npt,
        fixcom=settings.ensemble != "nvt-langevin",
        mode=settings.ensemble[:3],
        splitting=' splitting="baoab"' * (settings.ensemble != "nve"),
        timestep=settings.n_inner * settings.timestep,
        nmts=f"\n        <nmts> [1, {settings.n_inner}] </nmts>" * mts,
        coupling=_coupling(settings),
    )
    files = {
        "input.xml": text,
        STRUCTURE: as_extxyz(boxed),
        "velocities.xyz": _velocities(boxed),
        "README.txt": _readme(settings, stock),
    }
    if not stock:
        files["driver.py"] = DRIVER
    return files


def _check_stock(model: ModelReference, settings: MDSettings) -> None:
    """The driver of i-PI takes exported models, and asks whether they have the direct
    force without variant, whatever variant it is to take."""
    outputs = model.direct_outputs()
    if settings.n_inner > 1 and outputs and DIRECT_FORCE[1] not in outputs:
        raise ValueError(
            f"{model.files[-1]} has direct forces with a variant only "
            f"({', '.join(outputs)}), which the driver of i-PI does not find: leave "
            "out --stock"
        )


def _force_fields(settings: MDSettings, model: ModelReference, stock: bool) -> str:
    kinds = ["conservative", "direct"] if settings.n_inner > 1 else ["conservative"]
    if stock:
        return "\n".join(_stock_force_field(kind, model) for kind in kinds)
    named = model.named_in_folder()
    return "\n".join(_force_field(kind, settings, named) for kind in kinds)


FORCE_FIELD = """\
  <ffdirect name="{name}" pbc="false">
{pes}
    <parameters> {{{parameters}}} </parameters>
  </ffdirect>"""


def _force_field(kind: str, settings: MDSettings, model: ModelReference) -> str:
    parameters = {
        "template": STRUCTURE,
        "model": model.model,
        "force": kind,
        "n_inner": settings.n_inner,
        "stress": settings.ensemble == "npt",
        "direct_model": model.direct_model,
        "device": model.device,
        "variant": model.variant,
        "extensions": model.extensions,
    }
    pes = "    <pes> custom </pes>\n    <pes_path> driver.py </pes_path>"
    return FORCE_FIELD.format(name=kind, pes=pes, parameters=_join(parameters))


def _stock_force_field(kind: str, model: ModelReference) -> str:
    direct, named = kind == "direct", model.named_in_folder()
    parameters = {
        "template": STRUCTURE,
        "model": named.direct_model or named.model if direct else named.model,
        "non_conservative": direct and bool(model.direct_outputs()),
        "device": model.device,
        "energy_variant": model.variant,
        "extensions": named.extensions,
    }
    pes = "    <pes> metatomic </pes>"
    return FORCE_FIELD.format(name=kind, pes=pes, parameters=_join(parameters))


def _join(parameters: dict[str, Any]) -> str:
    given = {key: value for key, value in parameters.items() if value is not None}
    return ", ".join(f"{key}: {value}" for key, value in given.items())


def _coupling(settings: MDSettings) -> str:
    """Thermostat and barostat."""
    if settings.ensemble == "nve":
        return ""
    if settings.ensemble == "nvt-langevin":
        return _thermostat("langevin", 1000.0 / settings.friction, 8)
    particles = _thermostat("svr", settings.tau, 8)
    if settings.ensemble == "nvt-svr":
        return particles
    mode = "isotropic" if settings.cell == "isotropic" else "flexible"
    fixed = "\n          <hfix> [offdiagonal] </hfix>"
    return f"""\
{particles}
        <barostat mode="{mode}">
          <tau units="femtosecond"> {settings.tau_p} </tau>
{_thermostat("langevin", settings.tau_p, 10)}{fixed * (settings.cell == "orthorhombic")}
        </barostat>"""


def _thermostat(mode: str, tau: float, indent: int) -> str:
    text = f'<tau units="femtosecond"> {tau} </tau>'
    return f'{" " * indent}<thermostat mode="{mode}"> {text} </thermostat>'


def _velocities(atoms: ase.Atoms) -> str:
    lines = [str(len(atoms)), "# velocities{ase}"]
    for symbol, row in zip(atoms.symbols, atoms.get_velocities(), strict=True):
        lines.append(f"{symbol} {row[0]:.17g} {row[1]:.17g} {row[2]:.17g}")
    return "\n".join(lines) + "\n"


def _readme(settings: MDSettings, stock: bool) -> str:
    driver = "the metatomic driver of i-PI" if stock else "the driver of dualforce"
    install = "ipi metatomic-torch vesin" if stock else '"dualforce[ipi]"'
    return f"""\
Run, in this folder:

    {COMMAND}

and continue an interrupted run with `i-pi RESTART`.
Needs: pip install {install}

One step of i-PI is an outer step of {settings.n_inner} x {settings.timestep} fs, with
{driver}. Thermostats act once in an outer step. Energies: run.out, structures:
run.pos_0.extxyz.
"""
