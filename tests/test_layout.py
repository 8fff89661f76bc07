"""Imports between the parts of the package run downwards only (docs/design.md)."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import dualforce


ROOT = Path(dualforce.__file__).parent

MAY_IMPORT = {
    "forces": set(),
    "nn": set(),
    "md": {"forces"},
    "training": {"nn"},
    "engines": {"forces", "md"},
    "torchsim": {"forces", "md"},
    "diagnostics": {"forces", "md"},
    "distillation": {"forces", "md", "training", "engines"},
    "plugin": {"nn", "training", "distillation"},
    "cli": {"forces", "md", "engines", "diagnostics", "distillation"},
}


def imported(path: Path) -> Iterator[str]:
    """Parts of the package that a module imports, also within functions."""
    package = ["dualforce", *path.relative_to(ROOT).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            names = [*base, *(node.module or "").split(".")]
            if names[0] == "dualforce" and len(names) > 1 and names[1]:
                yield names[1]
            elif names[:1] == ["dualforce"]:
                yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("dualforce."):
                    yield alias.name.split(".")[1]


def test_every_part_is_known() -> None:
    """A new part has its place here and in the design."""
    found = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert found == set(MAY_IMPORT)


@pytest.mark.parametrize("part", list(MAY_IMPORT))
def test_imports_run_downwards(part: str) -> None:
    """Without exception."""
    for path in (ROOT / part).rglob("*.py"):
        parts = set(imported(path)) & set(MAY_IMPORT)
        wrong = parts - MAY_IMPORT[part] - {part}
        assert not wrong, f"{path.relative_to(ROOT)} imports {', '.join(wrong)}"


def test_only_training_knows_metatrain() -> None:
    """Dynamics, engines and diagnostics run without it."""
    for part in ("forces", "md", "engines", "torchsim", "diagnostics"):
        for path in (ROOT / part).rglob("*.py"):
            assert "metatrain" not in {
                name.split(".")[0]
                for node in ast.walk(ast.parse(path.read_text()))
                for name in (
                    [node.module or ""]
                    if isinstance(node, ast.ImportFrom)
                    else [alias.name for alias in getattr(node, "names", [])]
                    if isinstance(node, ast.Import)
                    else []
                )
            }, path


def test_public_names() -> None:
    """Everything the front door promises is there."""
    for name in dualforce.__all__:
        assert getattr(dualforce, name) is not None
    assert set(dualforce.__all__) <= set(dir(dualforce))
