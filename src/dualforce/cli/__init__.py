"""The ``dualforce`` command."""

import logging
from typing import Any

import click

from ..dynamics import RunFailedError
from .combine import combine
from .diagnose import diagnose
from .inputs import inputs
from .md import md
from .relax import relax
from .tune import tune


class FriendlyGroup(click.Group):
    """Shows errors of input as a sentence, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (ValueError, OSError, ImportError, RunFailedError) as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=FriendlyGroup, context_settings={"show_default": True})
@click.version_option(package_name="dualforce")
def main() -> None:
    """Run and judge interatomic potentials with conservative and direct forces."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    logging.captureWarnings(True)


main.add_command(combine)
main.add_command(diagnose)
main.add_command(inputs)
main.add_command(md)
main.add_command(relax)
main.add_command(tune)
