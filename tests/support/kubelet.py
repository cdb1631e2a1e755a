"""Fires a container's probes as the kubelet does (pkg/kubelet/prober/worker.go), in the network it is started in.

One worker for each probe: it asks every periodSeconds, from a moment within the first period on. Liveness and readiness
wait for the startup probe. An answer from 200 to 399 within timeoutSeconds is a success; failureThreshold failures in a
row are the verdict, which for startup and liveness is to restart the container.
"""

import http.client
import json
import random
import sys
import time
from threading import Event, Lock, Thread
from typing import Any, Final

PROBES: Final = ("startupProbe", "livenessProbe", "readinessProbe")

#: What Kubernetes takes where a probe does not say (core/v1, Probe).
DEFAULTS: Final = {"periodSeconds": 10, "timeoutSeconds": 1, "failureThreshold": 3, "initialDelaySeconds": 0}

_PRINTING: Final = Lock()


def say(**facts: object) -> None:
    with _PRINTING:
        print(json.dumps(facts), flush=True)


def succeeds(port: int, path: str, timeout: float) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    deadline = time.monotonic() + timeout
    try:
        connection.request("GET", path)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return 200 <= status < 400 and time.monotonic() < deadline


def work(name: str, container: dict[str, Any], started: Event) -> None:
    """Ask for ever; say each change, and each verdict."""
    probe = {**DEFAULTS, **container[name]}
    if name != "startupProbe" and "startupProbe" in container:
        started.wait()
    time.sleep(random.uniform(0, probe["periodSeconds"]) + probe["initialDelaySeconds"])
    failures, was_good = 0, False
    while True:
        begun = time.monotonic()
        is_good = succeeds(probe["httpGet"]["port"], probe["httpGet"]["path"], probe["timeoutSeconds"])
        failures = 0 if is_good else failures + 1
        if is_good and not was_good:
            say(probe=name, result="success")
        if failures == probe["failureThreshold"]:
            say(probe=name, result="failed")
        was_good = is_good
        if is_good and name == "startupProbe":
            started.set()
            return
        time.sleep(max(0.0, begun + probe["periodSeconds"] - time.monotonic()))


if __name__ == "__main__":
    given, up = json.load(sys.stdin), Event()
    threads = [Thread(target=work, args=(name, given, up), daemon=True) for name in PROBES if name in given]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
