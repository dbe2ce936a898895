"""The direction of the rooms inside each package: one imports only from those named before it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = {
    "agents": "replay learning config presets saving playing reporting training sweeping sb3 "
    "commands cli",
    "rl_nfm": "support backbones values nfm rims arithmetic modular encoders supervised",
    "envs": "checks spec vector registry atari images gym_protocol gymnasium",
}
"""Bottom to top. Any other file of envs is an environment: it imports from all of these, and
nothing imports from it."""


def room_of(module, package):
    """The room of a dotted name inside the package; None for the package itself or others."""
    parts = module.split(".")
    return parts[1] if parts[0] == package and len(parts) > 1 else None


def imports(path, package, rooms):
    """The rooms that a file imports from, wherever in it, with the line."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module]
            if node.module == package:
                names = [f"{package}.{alias.name}" for alias in node.names]
        for name in names:
            if (room := room_of(name, package)) in rooms:
                yield room, node.lineno


@pytest.mark.parametrize("package", ROOMS)
def test_a_room_imports_only_from_those_before_it(package):
    rooms = ROOMS[package].split()
    everything = {path.stem for path in (ROOT / package).iterdir()} - {"__init__", "__pycache__"}
    wrong, found = [], set()
    for path in sorted((ROOT / package).rglob("*.py")):
        own = path.relative_to(ROOT / package).with_suffix("").parts[0]
        if own == "__init__":
            continue
        found.add(own)
        below = rooms[: rooms.index(own) + 1] if own in rooms else [*rooms, own]
        assert own in rooms or package == "envs", f"{path}: {own} is no room; say where it stands"
        wrong += [
            f"{path.relative_to(ROOT)}:{line} imports {room}"
            for room, line in imports(path, package, everything)
            if room not in below
        ]
    assert found >= set(rooms)
    assert not wrong
