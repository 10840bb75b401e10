"""Kernels and ops made for tests: good, broken and hostile ones. Not part of jitd."""
