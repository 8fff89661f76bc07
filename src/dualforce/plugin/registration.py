"""Whether metatrain can find the architecture."""

from importlib.util import find_spec
from pathlib import Path


class RegistrationError(RuntimeError):
    """metatrain does not see the architecture."""


def metatrain_folder() -> Path:
    """Folder of the metatrain package that Python imports.

    :raises RegistrationError: if there is none.
    """
    spec = find_spec("metatrain")
    if spec is None or spec.origin is None:
        raise RegistrationError(
            "metatrain is not installed; `pip install 'metatrain>=2026.4,<2026.5'`"
        )
    return Path(spec.origin).parent


def check_registration(metatrain: Path) -> Path:
    """Find the files that make the architecture known.

    :param metatrain: folder of the metatrain package.
    :return: their folder.
    :raises RegistrationError: if they lie elsewhere than where metatrain looks.
    """
    folder = metatrain / "experimental" / "dualforce"
    if (folder / "__init__.py").exists():
        return folder
    raise RegistrationError(
        f"metatrain looks for architectures in {metatrain}, and dualforce is not among "
        "them. metatrain is probably an editable installation: replace it by an "
        "ordinary one (`pip install --force-reinstall --no-deps "
        "'metatrain>=2026.4,<2026.5'`), or link the files yourself: "
        f"`ln -s {Path(__file__).parent / '_metatrain'} {folder}`"
    )
