"""A process that a sweep can give work to, without torch: it speaks as dstee's own, and behaves as the name of the run says."""

import json
import os
import signal
import sys
import time
from pathlib import Path


def say(event, **values):
    print(json.dumps({"event": event, **values}), flush=True)


def finish(job):
    folder = Path(job["folder"])
    folder.mkdir(exist_ok=True)
    (folder / "done").write_text(f"{os.environ.get('CUDA_VISIBLE_DEVICES', '')}")
    say("done", seconds=1.0, accuracies=[0.5])


def stop(signum, frame):
    say("stopped")
    (Path(sys.argv[1]) / f"stopped-{os.getpid()}").touch()
    os._exit(0)


def main():
    if (Path(sys.argv[1]) / "broken").exists():
        sys.exit("ImportError: no torch")
    say("ready")
    for line in sys.stdin:
        job = json.loads(line)
        name = Path(job["folder"]).name
        say("step", step=0, total=10)
        tried = Path(sys.argv[1]) / f"tried-{name}"
        again = tried.exists()
        tried.touch()
        if name.startswith("wrong"):
            say("failed", reason="budget that no distribution meets")
        elif name.startswith("dies") or (name.startswith("once") and not again):
            os.kill(os.getpid(), signal.SIGKILL)
        elif name.startswith("exits"):
            sys.exit("MemoryError: no room")
        elif name.startswith("waits") and not again:
            signal.signal(signal.SIGTERM, stop)
            (Path(sys.argv[1]) / f"waiting-{os.getpid()}").touch()
            time.sleep(60)
        else:
            say("step", step=5, total=10, accuracy=0.4)
            finish(job)


main()
