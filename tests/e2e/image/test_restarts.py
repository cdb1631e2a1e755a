"""A container that is killed, stopped, restarted or starved: the address and the rules are never gone."""

import json
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest

from support import kubelet
from support.manifests import Manifest, container, environment, rendered
from support.namespace import CIDR, Namespace
from support.podman import NET_RAW, PRIVILEGES, VOLUMES, Podman
from support.waiting import HANG, until

OPTIONS: Final = (*PRIVILEGES, NET_RAW, *VOLUMES)

#: Of a core: what a limit of 10m is, which takes a minute for a start; and what lets the same be seen in a few seconds.
STARVED, HUNGRY = 0.01, 0.1

#: Seconds, with --thorough, and below the 600 that a start may take.
STARVED_FOR = 300


@pytest.fixture(scope="module")
def documents() -> list[Manifest]:
    return rendered("kubernetes")


@pytest.fixture
def settings(documents: list[Manifest]) -> dict[str, str]:
    """Return the environment of the sidecar's container, for a backend that tells the kernel of its changes."""
    return environment(container("sidecar", documents), documents) | {"SIDECAR_IPTABLES_BACKEND": "nft"}


@contextmanager
def nothing_goes(namespace: Namespace) -> Iterator[None]:
    """Hold by the kernel's own events that no address and no rule is deleted, and that none comes anew."""
    monitors = [
        namespace.start("ip", "-oneline", "monitor", "address"),
        namespace.start("nft", "monitor", "rules"),
    ]
    until(lambda: {str(each.pid) for each in monitors} <= set(namespace.run("cat", "/proc/net/netlink").split()))
    yield
    assert namespace.in_place()
    for each in monitors:
        each.terminate()
    assert [each.communicate()[0] for each in monitors] == ["", ""]


def test_killed_stopped_or_in_a_crash_loop_it_leaves_everything_in_place(
    podman: Podman, image: str, namespace: Namespace, settings: dict[str, str]
) -> None:
    def start(**env: str) -> Any:  # noqa: ANN401 - a Sidecar
        return podman.start(image, (*OPTIONS, "--name=sidecar"), settings | env)

    first = start(SIDECAR_DAEMON="false")
    assert first.end() == 0
    with nothing_goes(namespace):
        for signal in ("KILL", "TERM", "KILL", "TERM"):
            sidecar = start()
            sidecar.wait_for("in sync")
            podman.run("kill", f"--signal={signal}", "sidecar")
            sidecar.end()
            until(lambda: not podman.run("ps", "--all", "--quiet").strip())
        for fault in ({"SIDECAR_PORT": "99999"}, {"SIDECAR_INTERFACE": "no/name"}, {"SIDECAR_V": "x"}):
            assert start(**fault).end() == 2
        started = start()  # killed while it starts
        until(lambda: podman.run("ps", "--quiet").strip())
        podman.run("kill", "--signal=KILL", "sidecar")
        started.end()


class Kubelet:
    """Fires the probes of the manifest, in a process in the node's network."""

    def __init__(self, namespace: Namespace, sidecar: Manifest) -> None:
        argv = [*namespace.prefix, sys.executable, kubelet.__file__]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        with self.process.stdin as given:  # type: ignore[union-attr] # it is a pipe, see above
            given.write(json.dumps(sidecar))
        self.told: list[tuple[str, str]] = []

    def read(self, seconds: float) -> None:
        """Read the next verdict, or nothing for this long."""
        assert self.process.stdout
        if select.select([self.process.stdout], [], [], seconds)[0]:
            said = json.loads(self.process.stdout.readline())
            self.told.append((said["probe"], said["result"]))

    @property
    def restarts(self) -> bool:
        return bool({("startupProbe", "failed"), ("livenessProbe", "failed")}.intersection(self.told))

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()  # type: ignore[union-attr] # as above


@pytest.fixture
def fire(namespace: Namespace, documents: list[Manifest]) -> Iterator[Callable[[], Kubelet]]:
    started: list[Kubelet] = []

    def fire() -> Kubelet:
        started.append(Kubelet(namespace, container("sidecar", documents)))
        return started[-1]

    yield fire
    for each in started:
        each.end()


def delete(namespace: Namespace) -> None:
    namespace.run("ip", "address", "delete", CIDR, "dev", "lo")


def test_a_starved_container_passes_its_probes_and_repairs(
    podman: Podman, image: str, namespace: Namespace, settings: dict[str, str], fire: Callable[[], Kubelet]
) -> None:
    sidecar = podman.start(image, (*OPTIONS, "--name=starved", f"--cpus={HUNGRY}"), settings)
    probes = fire()
    while ("readinessProbe", "success") not in probes.told or ("livenessProbe", "success") not in probes.told:
        before = len(probes.told)
        probes.read(HANG)
        assert len(probes.told) > before
        assert not probes.restarts
    assert namespace.in_place()
    delete(namespace)
    until(namespace.in_place)
    assert not probes.restarts
    assert sidecar.stop() == 0
    assert namespace.in_place()


@pytest.mark.thorough
def test_five_minutes_at_a_hundredth_of_a_core_with_both_cores_busy_restart_nothing(
    podman: Podman, image: str, namespace: Namespace, settings: dict[str, str], fire: Callable[[], Kubelet]
) -> None:
    assert podman.start(image, OPTIONS, settings | {"SIDECAR_DAEMON": "false"}).end() == 0
    busy = [namespace.start("sh", "-c", "while :; do :; done") for _ in range(2)]
    try:
        with nothing_goes(namespace):
            sidecar = podman.start(image, (*OPTIONS, "--name=starved", f"--cpus={STARVED}"), settings)
            probes = fire()
            ends = time.monotonic() + STARVED_FOR
            while time.monotonic() < ends:
                probes.read(max(0.0, ends - time.monotonic()))
                assert not probes.restarts, probes.told
            assert ("livenessProbe", "success") in probes.told
            assert ("readinessProbe", "success") in probes.told
            podman.run("kill", "--signal=KILL", "starved")
            sidecar.end()
    finally:
        for each in busy:
            each.kill()
            each.communicate()


def test_a_container_that_hangs_is_found_out(
    podman: Podman, image: str, namespace: Namespace, settings: dict[str, str], documents: list[Manifest]
) -> None:
    """The probes' own figures, a hundredth of their time."""
    sidecar = podman.start(image, (*OPTIONS, "--name=hung"), settings)
    sidecar.wait_for("in sync")
    podman.run("pause", "hung")
    made = container("sidecar", documents)
    quick = {name: made["livenessProbe"][name] / 100 for name in ("periodSeconds", "timeoutSeconds")}
    probes = Kubelet(namespace, {"livenessProbe": made["livenessProbe"] | quick})
    probes.read(HANG)
    probes.end()
    assert probes.told == [("livenessProbe", "failed")]
    podman.run("unpause", "hung")
    assert sidecar.stop() == 0
