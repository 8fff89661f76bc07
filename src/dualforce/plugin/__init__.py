"""Every contact with what metatrain does not offer.

metatrain 2026.4 finds architectures in the folders of its own package. The wheel of
dualforce therefore owns one such folder, ``metatrain/experimental/dualforce``, with the
two files in ``_metatrain/``; :mod:`.registration` tells whether they lie where
metatrain looks. Entry points for architectures (metatrain issue 879) would make them
unnecessary.

Five functions of metatrain are replaced in processes that train this architecture
(:mod:`.patches`). Trainings of other architectures in the same process get metatrain's
own functions.

``metatrain.cli.train.check_architecture_options``
    Checks options before data are read. Ours also checks ranges, the files that the
    training starts from and those it will write (:mod:`.files`, which looks up the
    arguments of the running ``train_model``), and takes note of options that data sets
    need. Unnecessary if architectures could check options and take part in making data
    sets.
``metatrain.cli.train.get_dataset``
    Makes data sets. Ours check structures first, remember file and volumes, say what is
    used of the files, ignore what options turn off (:mod:`.datasets`), and take
    labels from a teacher. Unnecessary if data sets knew their origin, and for the same
    reason as the first one.
``metatrain.cli.train._eval_targets``
    Evaluates the exported model at the end. Ours skips data sets with direct stresses
    of slabs. Unnecessary if metatomic's structures knew their volumes.
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
