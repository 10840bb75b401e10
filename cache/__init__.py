"""Records on disk: keys, the store, locks and clearing.

This folder knows bytes, files and processes. It knows neither torch nor Triton nor anything else of
jitd, reads no environment variable (callers pass arguments), and imports in a few milliseconds, so
that a command line which only lists or clears the cache starts at once. Import from its modules.
"""
