"""What is used of a file, and what is not, in one line for each file."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Dict, List

from ase import Atoms

from .reading import read_frames


STRUCTURE = {"numbers", "positions"}
"""What every structure has."""


def is_ase_file(section: Mapping[str, Any]) -> bool:
    """Whether a section of the options reads a file with ASE.

    :param section: section of structures or of a target, expanded by metatrain.
    """
    file = Path(str(section["read_from"]))
    if section.get("reader") is not None:
        return section["reader"] == "ase"
    return file.suffix in (".xyz", ".extxyz")


def _used_keys(section: Mapping[str, Any]) -> Dict[str, Dict[str, List[str]]]:
    """What each key of each file is used for."""
    used: Dict[str, Dict[str, List[str]]] = {}

    def add(part: Mapping[str, Any], use: str) -> None:
        keys = used.setdefault(str(part["read_from"]), {})
        keys.setdefault(str(part["key"]), []).append(use)

    targets = {**section["targets"], **(section.get("extra_data") or {})}
    for name, target in targets.items():
        if not is_ase_file(target):
            continue
        add(target, str(name))
        for option in ("forces", "stress", "virial"):
            if gradient := target.get(option):
                add(gradient, f"{option} of {name}")
    return used


def _count(frames: List[Atoms]) -> Dict[str, int]:
    """Number of frames that have each key."""
    counts: Dict[str, int] = {}
    for atoms in frames:
        for key in {*map(str, atoms.arrays), *map(str, atoms.info)} - STRUCTURE:
            counts[key] = counts.get(key, 0) + 1
    return counts


def report_files(section: Mapping[str, Any]) -> None:
    """Say what is used of the files of a data set, and what is not.

    :param section: section of the data set in the options, expanded by metatrain.
    """
    used = _used_keys(section)
    if is_ase_file(section["systems"]):
        used.setdefault(section["systems"]["read_from"], {})
    for file, keys in used.items():
        frames = read_frames(file)
        counts = _count(frames)
        asked = {key: f"'{key}' ({', '.join(uses)})" for key, uses in keys.items()}
        lists = {
            "used": [
                text + ("" if counts[key] == len(frames) else f" in {counts[key]}")
                for key, text in asked.items()
                if key in counts
            ],
            "missing": [text for key, text in asked.items() if key not in counts],
            "not used": [f"'{key}'" for key in sorted(counts.keys() - keys.keys())],
        }
        listed = "; ".join(f"{what} {', '.join(x)}" for what, x in lists.items() if x)
        logging.info(f"File '{file}', {len(frames)} frames: {listed or 'no labels'}")
