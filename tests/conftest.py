"""Before any test module is imported."""

import os

import torch

if not torch.cuda.is_available():
    # Read when Triton is imported: its kernels then run in an interpreter, on CPU tensors.
    os.environ["TRITON_INTERPRET"] = "1"
