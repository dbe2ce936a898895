"""The direction of imports: scripts -> agents -> {rl_nfm, envs}; rl_nfm and envs are strangers."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {
    "rl_nfm": {"agents", "envs", "scripts", "gymnasium", "ale_py", "stable_baselines3"},
    "envs": {"agents", "rl_nfm", "scripts", "torch"},
    "agents": {"scripts"},
}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", FORBIDDEN)
def test_package_imports_only_downwards(package):
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        assert not imported(path) & FORBIDDEN[package], path
