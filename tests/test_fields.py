"""Fields of a class are there from the start: what a method sets, `__init__` has set before."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def assigned(function):
    """The names of `self.NAME = ...` in a function, at any depth."""
    names = set()
    for node in ast.walk(function):
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign | ast.AugAssign):
            targets = [node.target]
        for target in targets:
            parts = target.elts if isinstance(target, ast.Tuple | ast.List) else [target]
            names |= {
                part.attr
                for part in parts
                if isinstance(part, ast.Attribute)
                and isinstance(part.value, ast.Name)
                and part.value.id == "self"
            }
    return names


def calls(function):
    """The names of `self.NAME(...)` in a function."""
    return {
        node.func.attr
        for node in ast.walk(function)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "self"
    }


def late_fields(trees):
    """Class and name of each field that a method sets, and neither building nor the class has.

    Building is `__init__`, and what it calls of the class itself, or of those it derives from.
    """
    classes = {n.name: n for tree in trees for n in ast.walk(tree) if isinstance(n, ast.ClassDef)}
    methods = {
        name: {n.name: n for n in cls.body if isinstance(n, ast.FunctionDef)}
        for name, cls in classes.items()
    }

    def family(name):
        bases = [ast.unparse(base).split("[")[0] for base in classes[name].bases]
        return [name, *(far for base in bases if base in classes for far in family(base))]

    building = {name: {"__init__", "__new__"} for name in classes}
    for name in classes:
        for base in family(name):
            if "__init__" in methods[name]:
                building[base] |= calls(methods[name]["__init__"])
    for name in classes:
        known = set()
        for base in family(name):
            known |= {ast.unparse(n.target) for n in classes[base].body if hasattr(n, "target")}
            for method in building[base] & methods[base].keys():
                known |= assigned(methods[base][method])
        for method in methods[name].values():
            if any(ast.unparse(d).endswith(".setter") for d in method.decorator_list):
                continue
            for field in assigned(method) - known:
                yield f"{name}.{field} is set in {method.name}"


FOREIGN = {f"CurveWriter.{name}" for name in ("file_writer", "all_writers", "purge_step")}
"""Set by the `__init__` of a class of another package."""


@pytest.mark.parametrize("package", ["agents", "envs", "rl_nfm"])
def test_methods_set_no_field_that_init_has_not_set(package):
    paths = sorted((ROOT / package).rglob("*.py"))
    found = late_fields([ast.parse(path.read_text()) for path in paths])
    assert [late for late in found if late.split()[0] not in FOREIGN] == []


def test_the_check_sees_a_late_field():
    base = "class A:\n def __init__(self): self.x = 1\n def _open(self): self.z = 1"
    late = "class B(A):\n def __init__(self): self._open()\n def run(self): self.y, self.x = 1, 2"
    found = list(late_fields([ast.parse(f"{base}\n{late}")]))
    assert found == ["B.y is set in run"]
