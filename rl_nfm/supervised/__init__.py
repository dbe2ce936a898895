"""The supervised tasks: secondary entry points over the same modules.

Importing this package registers every task; `rl_nfm.supervised.cli.main` runs one.
"""

from rl_nfm.supervised.tasks import (  # noqa: F401  (each registers its task)
    adding,
    arithmetic,
    autoencoding,
    classification,
    copying,
    counting,
    modular,
    sequential_digits,
    sort_of_clevr,
    stacked_digits,
)
