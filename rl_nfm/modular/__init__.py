"""Hierarchically modular networks, the Boolean tasks they are made for, and their known routing."""

from rl_nfm.modular.mlp import PrunedMLP
from rl_nfm.modular.networks import (
    HierarchicallyModular,
    Level,
    ModuleBank,
    RoutingConfig,
)
from rl_nfm.modular.placement import Routing, known_routing, wiring
from rl_nfm.modular.routing import straight_through_one_hot, straight_through_top_k
from rl_nfm.modular.search import Draws, redraw
from rl_nfm.modular.tasks import BooleanTask, Gate, boolean_task

__all__ = [
    "BooleanTask",
    "Draws",
    "Gate",
    "HierarchicallyModular",
    "Level",
    "ModuleBank",
    "PrunedMLP",
    "Routing",
    "RoutingConfig",
    "boolean_task",
    "known_routing",
    "redraw",
    "straight_through_one_hot",
    "straight_through_top_k",
    "wiring",
]
