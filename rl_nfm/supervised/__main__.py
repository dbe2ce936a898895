"""`python -m rl_nfm.supervised TASK ...`: the same as `rl-nfm supervised TASK ...`."""

import sys

from rl_nfm.supervised.cli import main

if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
