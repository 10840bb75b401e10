"""`jitctl`: warm, list, look into and clear the cache. One file per family of commands.

Only `warmup` and `show` may import torch, and only when the cache alone cannot answer.
"""
