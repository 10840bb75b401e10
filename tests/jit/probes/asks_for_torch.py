"""Fails, and says whether torch was there."""

import importlib
import sys

try:
    importlib.import_module("torch")
    IMPORTABLE = True
except ModuleNotFoundError:
    IMPORTABLE = False
raise RuntimeError(f"torch loaded: {'torch' in sys.modules}, importable: {IMPORTABLE}")


def kernel(out_ptr, BLOCK):
    pass
