"""The image, run as the DaemonSet runs it."""

import stat
import time
from pathlib import Path

import pytest
import yaml

from sidecar import __version__
from support.manifests import DEPLOY
from support.namespace import Namespace
from support.podman import NET_RAW, PRIVILEGES, VOLUMES, Podman

SETTINGS = {"SIDECAR_IP_ADDRESS": "10.96.0.2,fd00:10:96::2", "SIDECAR_SETUP_IPTABLES": "true"}
CIDRS = ["10.96.0.2/32", "fd00:10:96::2/128"]

MEBIBYTE = 2**20

#: Bytes. It was 64 MB when this was written.
LARGEST = 70e6


def in_place(namespace: Namespace, backend: str) -> bool:
    return sorted(namespace.addresses()) == CIDRS and all(
        len(namespace.rules(backend, family)) == 5 for family in (4, 6)
    )


def is_clean(namespace: Namespace) -> bool:
    return not namespace.addresses() and not any(
        namespace.rules(backend, family) for backend in ("nft", "legacy") for family in (4, 6)
    )


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_it_sets_up_stays_and_cleans_up(podman: Podman, image: str, namespace: Namespace, backend: str) -> None:
    options = (*PRIVILEGES, *VOLUMES, *([NET_RAW] if backend == "legacy" else []))
    settings = {**SETTINGS, "SIDECAR_IPTABLES_BACKEND": backend}
    once = podman.start(image, options, {**settings, "SIDECAR_DAEMON": "false"})
    assert once.end() == 0
    assert in_place(namespace, backend)

    daemon = podman.start(image, options, {**settings, "SIDECAR_CLEANUP": "true"})
    daemon.wait_for("in sync")
    namespace.iptables(backend, 4, "-t", "raw", "-F")
    daemon.wait_for("NOTRACK")
    assert daemon.stop() == 0
    assert is_clean(namespace)
    assert "Traceback" not in daemon.log
    assert "\nW" not in once.log + daemon.log


def test_the_backend_of_the_node_is_found_out(podman: Podman, image: str, namespace: Namespace) -> None:
    namespace.iptables("legacy", 4, "-A", "INPUT", "-p", "udp", "-m", "conntrack", "--ctstate", "NEW", "-j", "ACCEPT")
    once = podman.start(image, (*PRIVILEGES, NET_RAW, *VOLUMES), {**SETTINGS, "SIDECAR_DAEMON": "false"})
    assert once.end() == 0
    assert "IPv4 rules by iptables-legacy 1.8." in once.log
    assert len(namespace.rules("legacy")) == 6


def test_without_a_capability_it_says_which(podman: Podman, image: str, namespace: Namespace) -> None:
    settings = {**SETTINGS, "SIDECAR_IPTABLES_BACKEND": "legacy", "SIDECAR_DAEMON": "false"}
    once = podman.start(image, (*PRIVILEGES, *VOLUMES), settings)
    assert once.end() == 3
    assert "missing CAP_NET_RAW" in once.log
    assert not namespace.rules("legacy")


def test_a_new_instance_keeps_what_the_old_one_cleans_up(podman: Podman, image: str, namespace: Namespace) -> None:
    options = (*PRIVILEGES, *VOLUMES)
    settings = {**SETTINGS, "SIDECAR_IPTABLES_BACKEND": "nft", "SIDECAR_CLEANUP": "true"}
    old = podman.start(image, options, settings)
    old.wait_for("in sync")
    new = podman.start(image, options, settings)
    new.wait_for("in sync")
    assert old.stop() == 0
    assert in_place(namespace, "nft")
    assert "removed" not in old.log
    assert new.stop() == 0
    assert is_clean(namespace)


def test_flags_work_as_in_a_manifest_of_the_go_sidecar(podman: Podman, image: str, namespace: Namespace) -> None:
    flags = ("--ip-address=10.96.0.2", "--interface=lo", "--setup-iptables", "--port=443", "--daemon=false", "-v=2")
    assert podman.start(image, (*PRIVILEGES, *VOLUMES), {}, *flags).end() == 0
    assert namespace.addresses() == ["10.96.0.2/32"]


def test_the_manifest_asks_for_what_it_takes(podman: Podman, image: str) -> None:
    (daemon_set,) = yaml.safe_load_all((DEPLOY / "kubernetes" / "daemonset.yaml").read_text())
    resources = daemon_set["spec"]["template"]["spec"]["containers"][0]["resources"]
    request, limit = (int(resources[name]["memory"].removesuffix("Mi")) for name in ("requests", "limits"))
    # Two processes start; half of the limit is enough for both.
    options = (*PRIVILEGES, *VOLUMES, "--name=measured", f"--memory={limit // 2}m")
    daemon = podman.start(image, options, {**SETTINGS, "SIDECAR_SYNC_INTERVAL": "500ms", "SIDECAR_CLEANUP": "true"})
    daemon.wait_for("in sync")
    start = podman.cpu("measured")
    time.sleep(2)
    each = (podman.cpu("measured") - start) / (2 / 0.5)
    idle = podman.memory("measured") / MEBIBYTE
    print(f"\nidle daemon: {idle:.1f} MiB; CPU: start {start:.2f} s, each pass {each * 1000:.0f} ms")
    assert idle < request
    assert daemon.stop() == 0


def test_bad_settings_are_told(podman: Podman, image: str) -> None:
    once = podman.start(image, PRIVILEGES, {"SIDECAR_PORT": "99999"})
    assert once.end() == 2
    assert "SIDECAR_PORT=99999: not a port" in once.log


def test_what_the_image_says_of_itself(podman: Podman, image: str) -> None:
    config = podman.inspect("image", image)["Config"]
    assert config["Entrypoint"] == ["apiserver-proxy-sidecar"]
    assert config["User"] == "0:0"
    assert config["Labels"]["org.opencontainers.image.version"] == __version__
    assert [variable.partition("=")[0] for variable in config["Env"]] == ["PATH"]
    assert podman.run("run", "--rm", "--network=none", image, "version") == f"apiserver-proxy-sidecar {__version__}\n"


def test_the_image_has_what_is_needed_and_nothing_else(podman: Podman, image: str, namespace: Namespace) -> None:
    assert podman.inspect("image", image)["Size"] < LARGEST
    root = podman.run("image", "mount", image).strip()
    # The mount is seen in the namespace only.
    files = namespace.run("find", root, "-printf", "%m %y /%P\n").splitlines()
    kinds = {path: (int(mode, 8), kind) for mode, kind, path in (line.split(" ", 2) for line in files)}
    programs = {Path(path).name for path, (mode, kind) in kinds.items() if kind in "fl" and mode & stat.S_IXUSR}
    assert not programs & {"sh", "bash", "dash", "busybox", "apt", "apt-get", "dpkg", "pip", "pip3", "perl", "env"}
    assert {"ip", "iptables-nft", "iptables-legacy", "ip6tables-nft-restore", "xtables-nft-multi", "nft"} <= programs
    assert not [path for path, (mode, _) in kinds.items() if mode & (stat.S_ISUID | stat.S_ISGID)]
    compiled = {path for path in kinds if path.endswith(".cpython-313.pyc")}
    sources = [Path(path) for path in kinds if path.endswith(".py")]
    assert len(sources) > 500
    assert [path for path in sources if f"{path.parent}/__pycache__/{path.stem}.cpython-313.pyc" not in compiled] == []
    machine = ("/etc/pip.conf", "/etc/apt", "/etc/ssl", "/etc/resolv.conf", "/run/", "/root", "/tmp/", "/build")
    assert [path for path in kinds if path.startswith(machine)] == []
    assert {f"/var/lib/dpkg/status.d/{name}" for name in ("iptables", "iproute2", "nftables", "libc6")} <= set(kinds)
    assert {f"/usr/share/doc/{name}/copyright" for name in ("iptables", "iproute2", "nftables", "libc6")} <= set(kinds)
