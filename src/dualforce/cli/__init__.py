"""The ``dualforce`` command."""

import logging
import os
import tempfile
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

import click


COMMANDS = (
    "accelerate",
    "combine",
    "diagnose",
    "difference",
    "inputs",
    "md",
    "relax",
    "sample",
    "tune",
)
"""Each is a function of this name in a module of this name."""


class CommandGroup(click.Group):
    """Imports commands when they are used, and shows errors of input as a sentence."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name, or none."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(
            import_module(f".{cmd_name}", __name__), cmd_name
        )
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; no error ends in a traceback on the screen."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            raise click.ClickException(_sentence(error)) from error


def _sentence(error: Exception) -> str:
    """What a user reads of an error."""
    from ..distillation import AccelerationError
    from ..forces import EvaluationError
    from ..md import RunFailedError

    own = (AccelerationError, EvaluationError, RunFailedError)
    foreseen = (ValueError, OSError, ImportError, FloatingPointError)
    if isinstance(error, (*foreseen, *own)):
        return str(error)
    text = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    path = Path(tempfile.gettempdir()) / f"dualforce-error-{os.getpid()}.txt"
    path.write_text("".join(traceback.format_exception(error)))
    return (
        f"{text}. This was not foreseen; the traceback is in {path}. Please report it "
        "together with the command"
    )


@click.group(cls=CommandGroup, context_settings={"show_default": True})
@click.version_option(package_name="dualforce")
def main() -> None:
    """Run and judge interatomic potentials with conservative and direct forces."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    logging.captureWarnings(True)
