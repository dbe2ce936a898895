"""Layers that compute sums, products and quotients exactly, and so beyond their training range."""

from rl_nfm.arithmetic.cells import (
    NAC,
    NALU,
    ArithmeticLayer,
    MultiplicativeAccumulatorCell,
    NeuralAccumulatorCell,
    NeuralArithmeticLogicUnit,
)
from rl_nfm.arithmetic.functional import (
    accumulator_weight,
    distance_from_discrete,
    log_space_product,
    multiplication_unit,
    product_sign,
    sparsity_error,
)
from rl_nfm.arithmetic.heads import BuildHead
from rl_nfm.arithmetic.successors import (
    ImprovedNeuralArithmeticLogicUnit,
    NeuralAdditionUnit,
    NeuralMultiplicationUnit,
    project_,
)

INALU = ImprovedNeuralArithmeticLogicUnit
NAU = NeuralAdditionUnit
NMU = NeuralMultiplicationUnit

__all__ = [
    "INALU",
    "NAC",
    "NALU",
    "NAU",
    "NMU",
    "ArithmeticLayer",
    "BuildHead",
    "ImprovedNeuralArithmeticLogicUnit",
    "MultiplicativeAccumulatorCell",
    "NeuralAccumulatorCell",
    "NeuralAdditionUnit",
    "NeuralArithmeticLogicUnit",
    "NeuralMultiplicationUnit",
    "accumulator_weight",
    "distance_from_discrete",
    "log_space_product",
    "multiplication_unit",
    "product_sign",
    "project_",
    "sparsity_error",
]
