"""The systemd unit, run by systemd: in a container, on a node that is a namespace."""

from collections.abc import Callable
from pathlib import Path

import pytest

from support.manifests import DEPLOY
from support.namespace import Namespace
from support.podman import NET_RAW, Podman
from support.waiting import until

CIDR = "10.96.0.2/32"
NAME = "apiserver-proxy-sidecar"
SETTINGS = {"SIDECAR_IP_ADDRESS": "10.96.0.2", "SIDECAR_SETUP_IPTABLES": "true", "SIDECAR_IPTABLES_BACKEND": "legacy"}

#: What the container's systemd needs beside what the unit does: to mount. This machine's control groups may be v1.
OPTIONS = (
    "--systemd=always",
    "--network=ns:/proc/self/ns/net",
    "--cap-add=SYS_ADMIN",
    "--cap-add=NET_ADMIN",
    NET_RAW,
    "--security-opt=seccomp=unconfined",
    "--env=container=podman",
    "--env=SYSTEMD_PROC_CMDLINE=systemd.unified_cgroup_hierarchy=0 SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1",
)

Systemctl = Callable[..., str]


@pytest.fixture
def systemctl(podman: Podman, tmp_path: Path) -> Systemctl:
    """Boot systemd with the unit installed; settings are written before a command."""
    env, unit = tmp_path / "env", DEPLOY / "systemd" / f"{NAME}.service"
    env.touch()
    volumes = (f"--volume={unit}:/etc/systemd/system/{unit.name}:ro", f"--volume={env}:/etc/{NAME}.env:ro")
    podman.run("run", "--detach", "--name=node", "--pull=never", *OPTIONS, *volumes, "localhost/node", "/sbin/init")

    def systemctl(*words: str, check: bool = True, **settings: str) -> str:
        if settings:
            env.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        return podman.run("exec", "node", "systemctl", *words, check=check).strip()

    until(lambda: systemctl("is-system-running", check=False) in {"running", "degraded"})
    return systemctl


def in_place(namespace: Namespace) -> bool:
    return namespace.addresses() == [CIDR] and len(namespace.rules("legacy")) == 5


def test_the_unit(systemctl: Systemctl, podman: Podman, namespace: Namespace) -> None:
    systemctl("start", NAME, **SETTINGS)
    until(lambda: in_place(namespace))

    process = systemctl("show", "--property=MainPID", NAME)
    systemctl("reload", NAME)
    assert systemctl("show", "--property=MainPID", NAME) == process

    watch = namespace.start("ip", "-oneline", "monitor", "address")
    systemctl("restart", NAME, **SETTINGS)
    until(lambda: systemctl("show", "--property=MainPID", NAME) != process)
    process = systemctl("show", "--property=MainPID", NAME)
    systemctl("kill", "--signal=SIGKILL", NAME)
    until(lambda: systemctl("show", "--property=MainPID", NAME) not in (process, "MainPID=0"))
    namespace.iptables("legacy", 4, "-t", "raw", "-F")
    until(lambda: in_place(namespace))  # so it is the new one that is at work by now
    watch.terminate()
    assert watch.communicate()[0] == ""  # nothing came or went
    assert in_place(namespace)

    systemctl("stop", NAME)
    assert systemctl("is-active", NAME, check=False) == "inactive"
    assert in_place(namespace)

    # The record outlives the unit, as its directory does.
    systemctl("start", NAME, **SETTINGS | {"SIDECAR_IP_ADDRESS": "10.96.0.3"})
    until(lambda: namespace.addresses() == ["10.96.0.3/32"] and len(namespace.rules("legacy")) == 5)
    systemctl("stop", NAME)
    program = f"/opt/{NAME}/bin/{NAME}"
    assert podman.run("exec", "node", program, "cleanup", f"--env-file=/etc/{NAME}.env").startswith("clean: ")
    assert namespace.addresses() == []
    assert namespace.rules("legacy") == []


def test_the_unit_is_not_started_again_with_bad_settings(systemctl: Systemctl) -> None:
    systemctl("start", NAME, SIDECAR_IP_ADDRESS="10.96.0.x")
    until(lambda: systemctl("is-active", NAME, check=False) == "failed")
