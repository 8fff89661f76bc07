"""``python -m dualforce`` tells whether ``mtt`` can find the architecture."""

import sys
from importlib.metadata import version

from dualforce import __version__
from dualforce.plugin.registration import (
    RegistrationError,
    check_registration,
    metatrain_folder,
)


def main() -> int:
    """Print where the architecture is registered, or what to do.

    :return: exit status.
    """
    try:
        folder = check_registration(metatrain_folder())
    except RegistrationError as error:
        print(error, file=sys.stderr)
        return 1
    print(
        f"dualforce {__version__} is known to metatrain {version('metatrain')} as "
        f"'experimental.dualforce' ({folder})"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
