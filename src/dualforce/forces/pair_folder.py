"""Folders with a pair: a model and another one whose direct force it takes."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Dict, Optional, Union

from ..writing import replacing


DESCRIPTION = "pair.json"


@dataclass(frozen=True)
class Pair:
    """The models of a folder, and a structure to begin with."""

    model: str
    """Exported model, in the folder or elsewhere, or the name of a calculator."""
    direct_model: Optional[str] = None
    """Likewise; none where ``model`` has both forces."""
    structure: Optional[str] = None
    """A file in the folder."""
    temperature: Optional[float] = None
    """Highest temperature it was made for, in K."""

    def write(self, folder: Path) -> None:
        """Make a folder one of a pair.

        :param folder: the folder. Names of its files are kept relative to it.
        """
        content = {key: value for key, value in asdict(self).items() if value}
        with replacing(folder / DESCRIPTION) as unfinished:
            unfinished.write_text(json.dumps(content, indent=2) + "\n")


def is_pair_folder(path: Union[str, Path]) -> bool:
    """Whether there is a pair in the folder ``path``."""
    return (Path(path) / DESCRIPTION).is_file()


def read_pair(folder: Union[str, Path]) -> Pair:
    """The pair of a folder, with files as paths that can be opened.

    :param folder: the folder.
    :raises ValueError: if its description is damaged.
    """
    folder = Path(folder)
    path = folder / DESCRIPTION
    try:
        found: Dict[str, Any] = json.loads(path.read_text())
        pair = Pair(**found)
        assert isinstance(pair.model, str)
    except (ValueError, TypeError, AssertionError) as error:
        raise ValueError(
            f"{path} is damaged: run the command that made the folder again"
        ) from error
    return replace(
        pair,
        model=_place(folder, pair.model),
        direct_model=pair.direct_model and _place(folder, pair.direct_model),
        structure=pair.structure and _place(folder, pair.structure),
    )


def _place(folder: Path, name: str) -> str:
    """The file in the folder, if it is one."""
    return str(folder / name) if (folder / name).is_file() else name
