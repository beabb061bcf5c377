"""Triton's kernels are tested natively where there is a GPU, elsewhere interpreted in a process of their own."""

import importlib.util
import os

import torch

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # the default on GPUs, which Triton wants to be explicit

if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    # `test_interpreted.py` runs these with the variable set, which must be done before triton is imported
    collect_ignore_glob = ["test_triton_*.py"]
if importlib.util.find_spec("triton") is None:
    collect_ignore_glob = ["test_triton_*.py", "test_compile.py"]
