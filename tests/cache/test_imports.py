"""What importing the cache costs."""

import subprocess
import sys


def test_importing_the_store_imports_nothing_heavy() -> None:
    """A process that only reads the cache pays for none of the libraries that writing needs."""
    code = (
        "import sys, jitd.cache.store, jitd.cache.locks, jitd.cache.paths, jitd.cache.clear\n"
        "import jitd.cache.tiers\n"
        "print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    heavy = {"torch", "triton", "filelock", "platformdirs", "numpy", "asyncio", "subprocess"}
    heavy |= {"secrets", "jitd.cache.bundle", "jitd.cache.signing", "jitd.cache.verify"}
    assert heavy & set(done.stdout.split()) == set()
