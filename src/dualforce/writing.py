"""Files that are written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Union


@contextmanager
def replacing(path: Union[str, Path]) -> Iterator[Path]:
    """A path to write to, whose file takes the place of another at the end. Where that
    fails or is interrupted, the other file is as it was.

    :param path: file to replace, whose folder is made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        yield unfinished
        os.replace(unfinished, path)
    except BaseException:
        # On a full disk others then have room for a message.
        unfinished.unlink(missing_ok=True)
        raise
