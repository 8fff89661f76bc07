"""Models of installed packages by name: ``chgnet``, ``sevennet-0``, ``mace:FILE``.

A package of its own adds names by entry points of the group :data:`GROUP`::

    [project.entry-points."dualforce.calculators"]
    my-model = "my_package.ase:calculator"

where ``calculator`` takes what follows the colon (``my-model:WHAT``), or None, and
returns a calculator of ASE.
"""

import hashlib
import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Optional, Tuple


GROUP = "dualforce.calculators"

Maker = Callable[[Optional[str]], Any]
"""Takes what follows the colon of the name, and returns a calculator of ASE."""


@dataclass(frozen=True)
class Package:
    """A package that has models."""

    name: str
    """As `pip` calls it."""
    make: Maker
    argument: str = ""
    """What follows the colon, for messages; empty where nothing does."""


def _sevennet(argument: Optional[str]) -> Any:
    from sevenn.calculator import SevenNetCalculator

    return SevenNetCalculator("7net-0")


def _chgnet(argument: Optional[str]) -> Any:
    from chgnet.model.dynamics import CHGNetCalculator

    return CHGNetCalculator()


def _mace(argument: Optional[str]) -> Any:
    from mace.calculators import MACECalculator

    return MACECalculator(model_paths=argument)


def _xtb(method: str) -> Maker:
    def make(argument: Optional[str]) -> Any:
        from tblite.ase import TBLite

        return TBLite(method=method, verbosity=0)

    return make


PACKAGES: Mapping[str, Package] = {
    "sevennet-0": Package("sevenn", _sevennet),
    "chgnet": Package("chgnet", _chgnet),
    "mace": Package("mace-torch", _mace, "FILE"),
    "gfn1-xtb": Package("tblite[ase]", _xtb("GFN1-xTB")),
    "gfn2-xtb": Package("tblite[ase]", _xtb("GFN2-xTB")),
}
"""Names that need no entry point."""


def split_name(text: str) -> Optional[Tuple[str, Optional[str]]]:
    """The name of a model and what follows its colon; none if there is no such name.

    :param text: as the user gave it.
    """
    name, colon, argument = text.partition(":")
    if name not in PACKAGES and name not in _entry_points():
        return None
    return name, argument if colon else None


def absolute_name(text: str) -> str:
    """The same name with its file, if there is one in it, by an absolute path.

    :param text: a name, maybe with a colon and what follows it.
    """
    name, argument = split_name(text) or (text, None)
    if argument is None or not Path(argument).is_file():
        return text
    return f"{name}:{Path(argument).absolute()}"


def known_names() -> str:
    """All names, for messages."""
    own = [f"{n}:{p.argument}" if p.argument else n for n, p in PACKAGES.items()]
    return ", ".join([*own, *sorted(_entry_points())])


def make_calculator(text: str) -> Tuple[Any, str]:
    """A calculator by its name.

    :param text: a name, maybe with a colon and what follows it.
    :return: the calculator, and a digest of what it computes.
    :raises FileNotFoundError: if what follows the colon is to be a file, and is none.
    :raises ImportError: if the package is not installed.
    :raises ValueError: if something must follow the colon, or nothing may, or the
        package fails.
    """
    split = split_name(text)
    assert split is not None
    name, argument = split
    if name not in PACKAGES:
        point = _entry_points()[name]
        distribution = point.dist.name if point.dist is not None else point.value
        package = Package(distribution, lambda given: point.load()(given))
    else:
        package = PACKAGES[name]
        _check_argument(name, argument, package.argument)
    try:
        calculator = package.make(argument)
    except ImportError as error:
        raise ImportError(
            f"'{text}' needs the package {package.name}, which cannot be imported "
            f'({error}): pip install "{package.name}"'
        ) from error
    except Exception as error:  # from other people's code
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"'{text}' cannot be loaded: {reason}") from error
    return calculator, _digest(text, argument, package.name)


def _check_argument(name: str, argument: Optional[str], wanted: str) -> None:
    if not wanted and argument is not None:
        raise ValueError(f"nothing follows '{name}', but ':{argument}' does")
    if wanted and not argument:
        raise ValueError(f"give a file as '{name}:{wanted}'")
    if wanted and not Path(str(argument)).is_file():
        raise FileNotFoundError(f"'{name}:{argument}': there is no file '{argument}'")


def _digest(text: str, argument: Optional[str], package: str) -> str:
    content = f"{text} {importlib.metadata.version(package.partition('[')[0])}".encode()
    if argument is not None and Path(argument).is_file():
        content += Path(argument).read_bytes()
    return hashlib.sha256(content).hexdigest()


def _entry_points() -> Dict[str, Any]:
    return {point.name: point for point in importlib.metadata.entry_points(group=GROUP)}
