"""A worker that builds nothing: it does what the signature's op says, and leaves a winner, unless
there is one.

Pipes, process and store are real. In SCRIPT_FOLDER, `log` gets a line for each build begun, and
while `closed` is there, builds wait.
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path

from jitd.cache.keys import Key
from jitd.cache.store import Store
from jitd.jit import frames

FOLDER = Path(os.environ["SCRIPT_FOLDER"])


def log(text):
    with (FOLDER / "log").open("a") as file:
        file.write(f"{text}\n")


def built(request):
    op, signature = request["op"], request["signature"]
    store = Store(Path(os.environ["JITD_CACHE_DIR"]))
    key = Key.of("winner", op, problem=signature, under=os.environ.get("TRITON_PTXAS_PATH", ""))
    done = {"done": {"signature": signature, "config": "the best", "us": 2.0}}
    if store.has(key):
        return done
    log(f"{signature} {os.getpid()} {request['duty']}")
    while (FOLDER / "closed").exists():
        time.sleep(0.002)
    if op.startswith("crash") and not (FOLDER / f"{op}-survives").exists():
        (FOLDER / f"{op}-survives").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if op == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if op == "hang":
        time.sleep(3600)
    if op == "nonsense":
        os.write(1, b"\xff" * 64)
        time.sleep(3600)
    if op == "odd":
        return {"neither": "done nor failed"}
    if op == "fail":
        return {"failed": ["tune_failed", "it is hopeless"]}
    if op == "changed" and not (FOLDER / "changed").exists():
        (FOLDER / "changed").touch()
        return {"failed": ["other_code", "its source has changed"]}
    store.put(key, {"by": os.getpid()}, label=signature)
    frames.send(1, {"progress": [1, 1]})
    return done


def main():
    log(f"started {os.getpid()} {' '.join(sys.argv[1:])}")
    requests, came = [], threading.Condition()

    def read():
        while True:
            try:
                message = frames.receive(0)
            except frames.FrameError:
                os._exit(0)
            with came:
                requests.append(message)
                came.notify()

    threading.Thread(target=read, daemon=True).start()
    while True:
        with came:
            came.wait_for(lambda: requests)
            request = requests.pop(0)
        if request["do"] != "build":
            return
        frames.send(1, {**built(request), "counts": {"tunes": 1}})


if __name__ == "__main__":
    main()
