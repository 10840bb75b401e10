"""Which jitd this is, by its source: other code may ask for other kernels."""

import hashlib
import importlib.util
from functools import lru_cache
from pathlib import Path


@lru_cache(maxsize=1)
def code_digest() -> str:
    """Digest of jitd's own source files."""
    digest = hashlib.blake2b(digest_size=16)
    root = __name__.split(".", 1)[0]
    for part in ("jit", "autotune", "models"):
        spec = importlib.util.find_spec(f"{root}.{part}")
        for folder in (spec.submodule_search_locations or []) if spec else []:
            for path in sorted(Path(folder).rglob("*.py")):
                digest.update(f"{part}/{path.relative_to(folder)}\0".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()
