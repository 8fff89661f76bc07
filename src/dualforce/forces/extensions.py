"""Compiled extensions of exported models, and derivatives that are not in them.

Operations of ``sphericart-torch`` 2, which SOAP-BPNN contains, are compiled, but their
derivatives are registered by its Python package. Without that torch differentiates such
a model as if these operations were constant, and warns: forces are wrong.
"""

import importlib
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import List, Union

from .protocol import EvaluationError


DERIVATIVES = {"sphericart_torch": ("sphericart.torch", "sphericart-torch")}
"""Extensions whose derivatives are in a Python package: its module, and its name."""

UNKNOWN_DERIVATIVE = ".*an autograd kernel was not registered"
"""What torch warns of."""


def extensions_of(path: Union[str, Path]) -> List[str]:
    """Those of :data:`DERIVATIVES` whose operations an exported model calls.

    The list of extensions in the file does not tell: it holds what happened to be
    loaded where the model was exported.

    :param path: the file; one that is no exported model calls none.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            sources = [
                archive.read(name)
                for name in archive.namelist()
                if "/code/" in name and name.endswith(".py")
            ]
    except zipfile.BadZipFile:
        return []
    return [
        extension
        for extension in DERIVATIVES
        if any(f"ops.{extension}.".encode() in source for source in sources)
    ]


def register_derivatives(path: Union[str, Path]) -> None:
    """Make the derivatives of a model's extensions known to torch.

    :param path: exported model.
    :raises ValueError: if a package is not installed.
    """
    for extension in extensions_of(path):
        module, package = DERIVATIVES[extension]
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ValueError(
                f"{path} contains operations of {package}, whose Python package has "
                f"their derivatives; without it forces are wrong: pip install {package}"
            ) from error


def check_without_python(paths: Sequence[Union[str, Path]], engine: str) -> None:
    """Refuse models whose conservative forces would be wrong outside of dualforce.

    :param paths: exported models.
    :param engine: what is to load them.
    :raises ValueError: naming a model.
    """
    for path in paths:
        for extension in extensions_of(path):
            package = DERIVATIVES[extension][1]
            raise ValueError(
                f"the conservative forces of {path} would be wrong in {engine}: "
                "derivatives of its operations are in the Python package "
                f"{package}, which {engine} does not load. Run it by dualforce, or "
                "by `inputs ipi` without --stock, or train another network (`ace`)"
            )


@contextmanager
def derivatives_known(name: str) -> Iterator[None]:
    """Differentiate a model only if torch knows all derivatives.

    :param name: of the model, for the message.
    :raises EvaluationError: if it does not.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("error", UNKNOWN_DERIVATIVE, UserWarning)
        try:
            yield
        except UserWarning as warning:
            raise EvaluationError(
                f"{name} contains an operation whose derivative torch does not know, "
                f"so its conservative forces would be wrong ({warning}); import the "
                "Python package of its extension before"
            ) from warning
