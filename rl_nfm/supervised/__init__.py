"""The supervised tasks: secondary entry points over the same modules.

Importing this package registers every task in the folder `tasks`; `rl_nfm.supervised.cli.main` runs
one.
"""

from rl_nfm.supervised import tasks
from rl_nfm.support.discovery import import_modules

import_modules(tasks.__name__, tasks.__path__)
