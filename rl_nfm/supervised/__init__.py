"""The supervised tasks: secondary entry points over the same modules.

Importing this package registers every task; `rl_nfm.supervised.cli.main` runs one.
"""

from rl_nfm.supervised import adding, sort_of_clevr  # noqa: F401  (registers)
