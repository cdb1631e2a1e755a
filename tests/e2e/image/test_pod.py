"""The pod of the DaemonSet with HAProxy, run for real: by podman, on a node that is a namespace."""

import copy
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from support.manifests import Manifest, of_kind, pod, rendered
from support.namespace import Namespace
from support.podman import Podman
from support.waiting import until

CIDR = "10.96.0.2/32"

#: Address and port of each server in haproxy.cfg that runs here; what it is called in its certificate.
SERVERS = {"192.0.2.11": ("6443", "apiserver"), "192.0.2.20": ("8132", "konnectivity")}

Play = Callable[..., None]


@pytest.fixture(scope="module")
def documents() -> list[Manifest]:
    return rendered("examples/haproxy")


@pytest.fixture
def play(podman: Podman, documents: list[Manifest], tmp_path: Path) -> Play:
    """Make the pod, by the name that is given, with further settings."""

    def play(name: str, **settings: str) -> None:
        made, maps = copy.deepcopy((pod(documents), of_kind("ConfigMap", documents)))
        made["metadata"]["name"] = name
        # With Always, as on a node, podman starts an init container that has ended again and again: it would set up
        # what the sidecar has just removed.
        made["spec"]["restartPolicy"] = "OnFailure"
        for each in maps:
            if "SIDECAR_IP_ADDRESS" in each["data"]:
                each["data"] |= settings
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump_all([*maps, made]))
        podman.run("play", "kube", str(file))
        # What minReadySeconds is for: the address is this pod's as well by then.
        until(lambda: "in sync" in podman.log(f"{name}-sidecar"), lambda: podman.log(f"{name}-sidecar"))

    return play


@pytest.fixture
def servers(namespace: Namespace, tmp_path: Path) -> Iterator[None]:
    """Run what HAProxy passes connections on to: a TLS server each, with a certificate of its own."""
    started = []
    for address, (port, name) in SERVERS.items():
        key, certificate = tmp_path / f"{name}.key", tmp_path / f"{name}.crt"
        make = f"openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN={name} -keyout {key} -out {certificate}"
        subprocess.run(make.split(), check=True, capture_output=True)
        namespace.run("ip", "address", "add", f"{address}/32", "dev", "lo")
        serve = f"openssl s_server -quiet -accept {address}:{port} -key {key} -cert {certificate}"
        started.append(namespace.start(*serve.split()))
    yield
    for server in started:
        server.kill()
        server.communicate()


def who_answers(namespace: Namespace, *options: str) -> str:
    """Return the name in the certificate of whoever is behind the address; ask again until somebody is."""

    def ask() -> str:
        ask = ("timeout", "5", "openssl", "s_client", "-connect", "10.96.0.2:443", "-brief", *options)
        lines = namespace.run("sh", "-c", f"{' '.join(ask)} </dev/null 2>&1", check=False).splitlines()
        return next((line.rpartition("CN = ")[2] for line in lines if "CN = " in line), "")

    return until(ask)


def in_place(namespace: Namespace, backend: str) -> bool:
    return CIDR in namespace.addresses() and len(namespace.rules(backend)) == 5


def stop(podman: Podman, name: str) -> None:
    """Stop the pod as the kubelet does; all its containers must end by themselves, and well."""
    podman.run("pod", "stop", "--time=90", name)  # longer than that, and they are killed: an exit code of 137
    for container in ("sidecar", "proxy"):
        state = podman.inspect("container", f"{name}-{container}")["State"]
        assert (state["Running"], state["ExitCode"]) == (False, 0)


@pytest.mark.usefixtures("servers")
def test_the_pod_serves_the_address_and_leaves_it_in_place(podman: Podman, play: Play, namespace: Namespace) -> None:
    play("first", SIDECAR_IPTABLES_BACKEND="legacy")
    assert who_answers(namespace, "-noservername") == "apiserver"
    assert who_answers(namespace, "-servername", "kubernetes.default.svc") == "apiserver"
    assert who_answers(namespace, "-servername", "konnectivity.example.com") == "konnectivity"
    assert in_place(namespace, "legacy")

    sidecar = podman.inspect("container", "first-sidecar")
    assert sidecar["EffectiveCaps"] == ["CAP_NET_ADMIN", "CAP_NET_RAW"]
    assert sidecar["HostConfig"]["ReadonlyRootfs"]

    stop(podman, "first")
    assert in_place(namespace, "legacy")  # it cannot know that it does not come back


@pytest.mark.usefixtures("servers")
def test_a_rolling_update_with_surge_never_takes_the_address_away(
    podman: Podman, play: Play, namespace: Namespace
) -> None:
    play("old", SIDECAR_IPTABLES_BACKEND="nft")
    assert who_answers(namespace, "-noservername") == "apiserver"
    watch = namespace.start("ip", "-oneline", "monitor", "address")
    play("new", SIDECAR_IPTABLES_BACKEND="nft")
    stop(podman, "old")
    assert in_place(namespace, "nft")
    assert who_answers(namespace, "-noservername") == "apiserver"
    watch.terminate()
    assert watch.communicate()[0] == ""  # neither added nor deleted
    stop(podman, "new")
    assert in_place(namespace, "nft")


@pytest.mark.usefixtures("servers")
def test_a_rolling_update_with_another_address_leaves_nothing_of_the_old_one(
    podman: Podman, play: Play, namespace: Namespace
) -> None:
    play("old", SIDECAR_IPTABLES_BACKEND="legacy", SIDECAR_IP_ADDRESS="10.96.0.9", SIDECAR_SYNC_INTERVAL="1s")
    play("new", SIDECAR_IPTABLES_BACKEND="legacy", SIDECAR_SYNC_INTERVAL="1s")
    assert len(namespace.rules("legacy")) == 10
    stop(podman, "old")
    until(lambda: len(namespace.rules("legacy")) == 5)
    until(lambda: "10.96.0.9/32" not in namespace.addresses())
    assert in_place(namespace, "legacy")
    assert who_answers(namespace, "-noservername") == "apiserver"


def test_the_uninstall_cleans_the_node_once_nothing_runs_there(
    podman: Podman, play: Play, namespace: Namespace, tmp_path: Path
) -> None:
    made = rendered("kubernetes/uninstall")
    uninstall = pod(made)
    uninstall["metadata"]["annotations"] = {"io.podman.annotations.init.container.type": "always"}  # it keeps its log
    uninstall["spec"]["restartPolicy"] = "Never"
    file = tmp_path / "uninstall.yaml"
    file.write_text(yaml.safe_dump_all([*of_kind("ConfigMap", made), uninstall]))
    name = uninstall["metadata"]["name"]

    play("old", SIDECAR_IPTABLES_BACKEND="legacy", SIDECAR_IP_ADDRESS="10.96.0.9")
    podman.run("pod", "kill", "old")
    podman.run("pod", "rm", "--force", "old")
    play("sidecar", SIDECAR_IPTABLES_BACKEND="nft")
    podman.run("play", "kube", str(file), check=False)
    assert "an instance running on this node needs it" in podman.log(f"{name}-cleanup")
    assert not podman.inspect("container", f"{name}-done")["State"]["Running"]
    assert in_place(namespace, "nft")

    podman.run("pod", "rm", "--force", name)
    podman.run("pod", "stop", "sidecar")
    assert in_place(namespace, "nft")
    podman.run("play", "kube", str(file))
    until(lambda: podman.log(f"{name}-done") == "this node is clean\n", lambda: podman.log(f"{name}-cleanup"))
    assert podman.log(f"{name}-cleanup").startswith("clean: nothing is left on this node\n")
    assert CIDR not in namespace.addresses()
    assert "10.96.0.9/32" not in namespace.addresses()
    assert namespace.rules("nft") == namespace.rules("legacy") == []
    assert podman.inspect("container", f"{name}-done")["State"]["Running"]
    podman.run("pod", "stop", "--time=90", name)
    assert podman.inspect("container", f"{name}-done")["State"]["ExitCode"] == 0
