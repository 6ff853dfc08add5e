"""What a Pod does that fills a network volume: install the hub's client, fill, report, and end the Pod.

Its environment says what: QWEN_FILL_MODELS (hub ids), QWEN_FILL_ROOT (where the volume is mounted), QWEN_FILL_PINS
(packages). The deploy helper deletes the Pod when it has read the last line. Where the helper was killed, the Pod waits
for its next run, and then deletes itself: RunPod starts a container again that ends, and bills it.
"""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request

from .volume import MARK, say

HOLD_SECONDS = 900.0  # that the last line is repeated for a helper, where QWEN_FILL_HOLD does not say
REPEAT_SECONDS = 10.0


def main() -> None:
    last = work()
    ends = time.monotonic() + float(os.environ.get("QWEN_FILL_HOLD", HOLD_SECONDS))
    while True:
        print(last, flush=True)
        time.sleep(min(REPEAT_SECONDS, max(0.1, ends - time.monotonic())))
        if time.monotonic() >= ends:
            end_pod()


def work() -> str:
    """The last line: what was done, or why it was not."""
    pip = "-m pip install --quiet --disable-pip-version-check --root-user-action=ignore".split()
    if subprocess.run([sys.executable, *pip, *os.environ["QWEN_FILL_PINS"].split()]).returncode:
        return f"{MARK} failed: the hub's client could not be installed; the Pod's log says why"
    command = [sys.executable, "-m", "qwen_bake", "fill", "--root", os.environ["QWEN_FILL_ROOT"]]
    command += os.environ["QWEN_FILL_MODELS"].split()
    last = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as filling:
        for line in filling.stdout or ():
            print(line, end="", flush=True)
            if line.startswith((f"{MARK} done:", f"{MARK} failed:")):
                last = line.rstrip()
    return last or f"{MARK} failed: it ended with {filling.returncode}; the Pod's log says why"


def end_pod() -> None:
    """Delete this Pod with the key that RunPod gives each Pod for itself."""
    pod, key = os.environ.get("RUNPOD_POD_ID", ""), os.environ.get("RUNPOD_API_KEY", "")
    address = f"{os.environ['QWEN_FILL_API']}/v2/pods/{pod}"
    # RunPod's firewall turns away the name that urllib gives itself.
    headers = {"Authorization": f"Bearer {key}", "User-Agent": "qwen-fill"}
    request = urllib.request.Request(address, method="DELETE", headers=headers)
    try:
        urllib.request.urlopen(request, timeout=30).close()
    except (urllib.error.URLError, OSError) as error:
        say(f"cannot end its Pod ({error}): it costs until `volume fill` or the console deletes it")
        time.sleep(REPEAT_SECONDS)


if __name__ == "__main__":
    main()
