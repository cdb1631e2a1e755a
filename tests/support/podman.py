"""Containers on a node that is a namespace, made by podman from the storage that scripts/test-image sets up."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from support.namespace import Namespace
from support.program import Sidecar

#: What the DaemonSet of deploy/kubernetes gives its containers, as podman's options.
PRIVILEGES: Final = (
    "--user=0",
    "--cap-drop=ALL",
    "--cap-add=NET_ADMIN",
    "--security-opt=no-new-privileges",
    "--read-only",
    "--read-only-tmpfs=false",
)
NET_RAW: Final = "--cap-add=NET_RAW"
VOLUMES: Final = (
    "--volume=/run/xtables.lock:/run/xtables.lock",
    "--volume=/run/apiserver-proxy-sidecar:/run/apiserver-proxy-sidecar",
)

#: What scripts/test-image has set up, and podman wants to know besides.
_STORAGE: Final = {name: value for name, value in os.environ.items() if name.startswith(("CONTAINERS_", "HOME"))}

#: Controllers, as in /proc/PID/cgroup (v1, or v2, which has one for all) → folder, file, what counts as free.
_MEMORY: Final = {
    "memory": ("/sys/fs/cgroup/memory", "memory.usage_in_bytes", "total_inactive_file"),
    "": ("/sys/fs/cgroup", "memory.current", "inactive_file"),
}


class Podman:
    """Runs podman in the namespace, so that no container is ever in another one."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        namespace.run("mkdir", "/run/apiserver-proxy-sidecar")
        namespace.run("touch", "/run/xtables.lock")

    def run(self, *argv: str, stdin: str = "", check: bool = True) -> str:
        """Run one of podman's commands to its end; return what it prints."""
        done = subprocess.run(
            [*self._namespace.prefix, "podman", *argv],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            env=os.environ,
            timeout=120,
        )
        if check and done.returncode:
            raise AssertionError(f"podman {argv} exited with {done.returncode}: {done.stderr}")
        return done.stdout

    def log(self, container: str) -> str:
        """Return what the container has printed, to either stream."""
        argv = [*self._namespace.prefix, "podman", "logs", container]
        return subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True).stdout

    def inspect(self, kind: str, name: str) -> Any:  # noqa: ANN401 - whatever the JSON has
        (found,) = json.loads(self.run(kind, "inspect", name))
        return found

    def start(self, image: str, options: Sequence[str], env: Mapping[str, str], *flags: str) -> Sidecar:
        """Start a container with the namespace's network; a signal to podman reaches the container."""
        variables = [f"--env={name}={value}" for name, value in env.items()]
        # /proc/self is podman, which is in the namespace.
        network = "--network=ns:/proc/self/ns/net"
        argv = ["podman", "run", "--rm", "--pull=never", network, *options, *variables, image, *flags]
        return Sidecar(self._namespace.start(*argv, env=_STORAGE))

    def memory(self, container: str) -> int:
        """Return the bytes that the container works with, counted as Kubernetes does."""
        pid = self.inspect("container", container)["State"]["Pid"]
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers in _MEMORY:
                root, usage, inactive = _MEMORY[controllers]
                group = Path(f"{root}{path}")
                figures = dict(each.split() for each in (group / "memory.stat").read_text().splitlines())
                return int((group / usage).read_text()) - int(figures[inactive])
        raise AssertionError("no control group for its memory")

    def cpu(self, container: str) -> float:
        """Return the seconds of CPU that the container has taken so far."""
        return int(self.run("stats", "--no-stream", "--format={{.CPUNano}}", container)) / 1e9

    def clean(self) -> None:
        """Remove all containers and pods, running or not."""
        self.run("pod", "rm", "--all", "--force", "--time=0")
        self.run("rm", "--all", "--force", "--time=0")
