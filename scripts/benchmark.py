"""Speed and memory, as ratios measured in one run: `python scripts/benchmark.py NAME [options]`."""

import importlib
import pkgutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))


def main(argv: list[str]) -> int:
    folder = Path(__file__).parent / "benchmarks"
    names = sorted(m.name for m in pkgutil.iter_modules([str(folder)]) if m.name[0] != "_")
    if not argv or argv[0] not in names:
        wanted = argv[0] if argv else ""
        print(f"usage: benchmark.py {{{','.join(names)}}} [options]", file=sys.stderr)
        return 0 if wanted in ("-h", "--help") else 2
    sys.argv[0] = f"benchmark.py {argv[0]}"  # what the benchmark's own help begins with
    importlib.import_module(f"benchmarks.{argv[0]}").main(argv[1:])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
