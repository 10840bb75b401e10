"""Ends the process that imports it."""

import os

os._exit(5)


def kernel(out_ptr, BLOCK):
    pass
