"""From what a user names to a source of forces."""

import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, List, Optional, Tuple, Union

from ase.calculators.calculator import Calculator
from metatomic.torch import AtomisticModel

from .calculators import CalculatorForces
from .combined import CombinedForces, SummedForces
from .metatomic import MetatomicForces
from .packages import absolute_name, known_names, make_calculator, split_name
from .pair_folder import is_pair_folder, read_pair
from .protocol import ForceSource


Model = Union[str, Path, AtomisticModel, Calculator, ForceSource]
"""What can be loaded: an exported model (a file, or loaded), a folder of `dualforce
accelerate`, a calculator of ASE, ``module:callable`` or ``file.py:callable`` for what
returns one, the name of a package's model, a sum of these (``gfn2-xtb+model.pt``), or a
source."""


def load_forces(
    model: Model,
    direct_model: Optional[Model] = None,
    *,
    device: Optional[str] = None,
    variant: Optional[str] = None,
    extensions: Optional[Union[str, Path]] = None,
) -> ForceSource:
    """Load a source of forces.

    :param model: an exported model (``model.pt``), a folder of ``dualforce
        accelerate``, a calculator of ASE, ``module:callable`` (``file.py:callable``)
        for what returns a calculator when it is called without arguments, the name of
        a package's model (:mod:`dualforce.forces.packages`), or a sum of these with
        plus signs between them.
    :param direct_model: likewise; takes direct forces from there.
    :param device: torch device of exported models, by default the best they support;
        calculators choose themselves.
    :param variant: variant of the outputs of exported models, ``pbe`` for
        ``energy/pbe``.
    :param extensions: folder with compiled extensions of exported models.
    :raises FileNotFoundError: if there is no such file.
    :raises ImportError: if there is no such module, or nothing of this name in it.
    :raises ValueError: if what is there is no model, or has no forces.
    """
    if isinstance(model, (str, Path)) and is_pair_folder(model):
        pair = read_pair(model)
        model, direct_model = pair.model, direct_model or pair.direct_model
    source = _load_one(model, device, variant, extensions)
    if direct_model is None:
        return source
    direct = _load_one(direct_model, device, variant, extensions)
    return CombinedForces(source, direct)


def _load_one(
    model: Model,
    device: Optional[str],
    variant: Optional[str],
    extensions: Optional[Union[str, Path]],
) -> ForceSource:
    if isinstance(model, ForceSource):
        return model
    if _is_calculator(model):
        return CalculatorForces(model)  # type: ignore
    if isinstance(model, (str, Path)) and split_sum(model):
        terms = split_sum(model)
        return SummedForces(
            [_load_one(term, device, variant, extensions) for term in terms]
        )
    if isinstance(model, (str, Path)) and names_calculator(model):
        return load_calculator(str(model))
    if isinstance(model, (str, Path)):
        _check_file(Path(model))
    return MetatomicForces(model, device=device, variant=variant, extensions=extensions)


def _check_file(path: Path) -> None:
    if path.is_dir() or not path.exists():
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(
            f"'{path}' {problem}; give an exported model (model.pt), what returns a "
            "calculator of ASE (module:callable or file.py:callable), or a name "
            f"({known_names()})"
        )
    if path.suffix == ".ckpt":
        raise ValueError(
            f"{path} is a checkpoint; export it first: `mtt export {path} -o model.pt`"
        )


def _is_calculator(model: Any) -> bool:
    """Also what only looks like a calculator, as some packages have them."""
    if isinstance(model, (str, Path, AtomisticModel)):
        return False
    return all(hasattr(model, n) for n in ("get_property", "implemented_properties"))


def names_calculator(model: Union[str, Path]) -> bool:
    """Whether a text has the form ``module:callable`` or ``file.py:callable``, or is
    the name of a package's model, or a sum."""
    text = str(model)
    if Path(text).exists():
        return False
    if split_sum(text):
        return True
    place, colon, name = text.rpartition(":")
    has_form = bool(colon and place and name.isidentifier())
    return has_form or split_name(text) is not None


def split_sum(model: Union[str, Path]) -> List[str]:
    """The terms of a sum such as ``gfn2-xtb+difference.pt``; none if it is no sum.

    The path of a file may contain plus signs, also where it follows the name of a
    package's model or holds a callable.

    :param model: as the user gave it.
    """
    pieces, terms = str(model).split("+"), []
    while pieces:
        lengths = range(len(pieces), 0, -1)
        n = next((n for n in lengths if _names_file("+".join(pieces[:n]))), 1)
        terms.append("+".join(pieces[:n]))
        pieces = pieces[n:]
    if len(terms) < 2 or not all(terms):
        return []
    known = any(_names_file(term) or names_calculator(term) for term in terms)
    return terms if known else []


def _names_file(text: str) -> bool:
    """Whether there is the file or folder, the file of a callable, or what follows the
    name of a package's model."""
    place, _, name = text.rpartition(":")
    _, argument = split_name(text) or (text, None)
    is_callable = name.isidentifier() and Path(place).is_file()
    return Path(text).exists() or is_callable or Path(argument or text).is_file()


def portable_name(model: str) -> str:
    """The same model by a name that is valid in any working directory.

    :param model: a file, ``module:callable``, the name of a package's model, or a sum.
    """
    terms = split_sum(model)
    if terms:
        return "+".join(portable_name(term) for term in terms)
    if split_name(model) is not None:
        return absolute_name(model)
    if not names_calculator(model):
        return str(Path(model).absolute())
    place, _, name = model.rpartition(":")
    return f"{Path(place).absolute()}:{name}" if place.endswith(".py") else model


def load_calculator(spec: str) -> CalculatorForces:
    """The calculator that a text names.

    :param spec: ``module:callable`` or ``file.py:callable``; called without arguments
        it returns a calculator of ASE. Modules of the working directory count. Or the
        name of a package's model.
    :raises FileNotFoundError: if there is no such file.
    :raises ImportError: if there is no such module, or nothing of this name in it.
    :raises ValueError: if it returns no calculator, or one without forces.
    """
    if split_name(spec) is not None:
        calculator, digest = make_calculator(spec)
        return CalculatorForces(calculator, spec, digest)
    place, _, name = spec.rpartition(":")
    function, version = _find_function(place, name)
    try:
        calculator = function()
    except Exception as error:  # from other people's code
        raise ValueError(
            f"calling {spec} without arguments failed: {type(error).__name__}: {error}"
        ) from error
    if not _is_calculator(calculator):
        raise ValueError(
            f"{spec} returned {type(calculator).__name__}, which is no calculator of "
            "ASE"
        )
    digest = hashlib.sha256(f"{spec} {version}".encode()).hexdigest()
    return CalculatorForces(calculator, spec, digest)


def _find_function(place: str, name: str) -> Tuple[Callable[[], Any], str]:
    """What is to be called, and the version of the code it lies in."""
    if place.endswith(".py"):
        module, version = _import_file(place)
    else:
        if os.getcwd() not in sys.path:  # as for `python -m`
            sys.path.insert(0, os.getcwd())
        try:
            module = importlib.import_module(place)
        except ImportError as error:
            raise ImportError(
                f"module '{place}' cannot be imported: {error}"
            ) from error
        version = _version(module)
    if not callable(getattr(module, name, None)):
        raise ImportError(f"'{place}' has nothing called '{name}' that can be called")
    return getattr(module, name), version


def _import_file(path: str) -> Tuple[Any, str]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file '{path}'")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # from other people's code
        raise ImportError(
            f"'{path}' cannot be imported: {type(error).__name__}: {error}"
        ) from error
    return module, hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _version(module: Any) -> str:
    """Of the package; of a module that belongs to none, its contents."""
    package = module.__name__.partition(".")[0]
    for distribution in importlib.metadata.packages_distributions().get(package, []):
        return importlib.metadata.version(distribution)
    file = getattr(module, "__file__", None)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""
