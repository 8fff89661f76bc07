"""Every contact with what metatrain does not offer.

metatrain 2026.4 finds architectures in the folders of its own package. The wheel of
dualforce therefore owns one such folder, ``metatrain/experimental/dualforce``, with the
two files in ``_metatrain/``; :mod:`.registration` tells whether they lie where
metatrain looks. Entry points for architectures (metatrain issue 879) would make them
unnecessary.

Four functions of metatrain are replaced in processes that train this architecture
(:mod:`.patches`). Trainings of other architectures in the same process get metatrain's
own functions.

``metatrain.cli.train.check_architecture_options``
    Tells which architecture is trained with which options, before data are read: the
    option ``teacher`` is needed then. Unnecessary if architectures could take part in
    making data sets.
``metatrain.cli.train.get_dataset``
    Makes data sets. Ours remember their file, for messages, and take labels from a
    teacher. Unnecessary if data sets knew their origin, and for the same reason as the
    first one.
``metatrain.cli.train.model_from_checkpoint``
    Opens checkpoints. Ours makes a PET checkpoint the backbone of a new model, and says
    why a checkpoint cannot be used. Unnecessary if metatrain let architectures read
    checkpoints of others, and passed on the reason of a failure.
``metatrain.utils.data.readers.ase.read_energy``
    Reads energies, forces and stresses. metatrain's drops all forces of a file where
    one frame lacks them; ours (:mod:`dualforce.training.reading`) keeps what is there
    and refuses what is wrong. Unnecessary if metatrain's did.

:mod:`.pretrained` takes over weights, baseline and scale from models of metatrain,
whose attributes are not documented.
"""
