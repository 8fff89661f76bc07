"""metatrain finds the architecture, and a message says so where it cannot."""

from pathlib import Path

import pytest
from metatrain.utils.architectures import find_all_architectures

from dualforce.plugin.registration import (
    RegistrationError,
    check_registration,
    metatrain_folder,
)


def test_metatrain_lists_the_architecture() -> None:
    """The files lie where metatrain looks."""
    assert "experimental.dualforce" in find_all_architectures()
    assert check_registration(metatrain_folder()).name == "dualforce"


def test_other_metatrain_is_explained(tmp_path: Path) -> None:
    """An editable metatrain has its package elsewhere."""
    with pytest.raises(RegistrationError, match="editable installation"):
        check_registration(tmp_path)
