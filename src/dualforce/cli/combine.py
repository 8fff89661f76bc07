"""``dualforce combine``: one model from two."""

import click

from ..distillation import combine_files


_FILE = click.Path(exists=True, dir_okay=False)


@click.command()
@click.argument("teacher", type=_FILE)
@click.argument("student", type=_FILE)
@click.option(
    "--extensions",
    type=click.Path(exists=True, file_okay=False),
    help="Folder with compiled extensions of the models.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False),
    required=True,
    help="File for the combined model.",
)
def combine(teacher: str, student: str, extensions: str | None, output: str) -> None:
    """Make one model of two: the energy of TEACHER, the direct force of STUDENT.

    Both are exported models. Energies and conservative forces of the combined model are
    bitwise identical to those of the teacher; direct forces and stresses are those of
    the student, and asking for them does not run the teacher.
    """
    combined = combine_files(teacher, student, output, extensions)
    outputs = ", ".join(sorted(combined.module.direct))
    click.echo(f"Written: {output} ({outputs} of {student}, the rest of {teacher})")
