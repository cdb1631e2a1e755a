"""What is in deploy/: what the schema of Kubernetes says, and what it does not see."""

import copy
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from configparser import RawConfigParser
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Final

import kubernetes_validate
import pytest
from pytest_mock import MockerFixture

from sidecar import PROGRAM, __version__
from sidecar.node import claims, xtables_lock
from sidecar.settings import invocation, sources
from sidecar.settings.options import Options
from support.manifests import DEPLOY, Manifest, environment, of_kind, pod, rendered

ROOT: Final = DEPLOY.parent
FOLDERS: Final = ("kubernetes", "examples/haproxy")
UNIT: Final = DEPLOY / "systemd" / "apiserver-proxy-sidecar.service"
UNINSTALL: Final = "kubernetes/uninstall"
PROBES: Final = ("startupProbe", "livenessProbe", "readinessProbe")

#: Seconds: what a start takes at 1 % of a core, with another instance's cleanup to wait for; a hang that is one.
LONGEST_START: Final = 600
SHORTEST_HANG: Final = 300


@pytest.fixture(scope="module", params=FOLDERS)
def documents(request: pytest.FixtureRequest) -> list[Manifest]:
    return rendered(request.param)


@pytest.fixture(scope="module")
def uninstall() -> list[Manifest]:
    return rendered(UNINSTALL)


def containers(documents: list[Manifest], image: str = "") -> Iterator[Manifest]:
    """Yield the containers of the pod that have this in the name of their image."""
    spec = pod(documents)["spec"]
    yield from (each for each in [*spec["initContainers"], *spec["containers"]] if image in each["image"])


def faults(documents: list[Manifest]) -> Iterator[str]:
    """Find what Kubernetes would refuse, or wait for, and the schema does not tell."""
    (daemon_set,) = of_kind("DaemonSet", documents)
    made = pod(documents)
    wanted, labels = daemon_set["spec"]["selector"]["matchLabels"], made["metadata"]["labels"]
    if not wanted.items() <= labels.items():
        yield f"the selector {wanted} does not match {labels}"
    maps = {each["metadata"]["name"] for each in of_kind("ConfigMap", documents)}
    volumes = {volume["name"]: volume for volume in made["spec"]["volumes"]}
    for volume in volumes.values():
        if "configMap" in volume and volume["configMap"]["name"] not in maps:
            yield f"no config map {volume['configMap']['name']}"
    everywhere = list(containers(documents))
    if len({each["name"] for each in everywhere}) < len(everywhere):
        yield "two containers have one name"
    mounted = {mount["name"] for each in everywhere for mount in each.get("volumeMounts", [])}
    yield from (f"no volume {name}" for name in mounted - set(volumes))
    yield from (f"volume {name} is not used" for name in set(volumes) - mounted)
    for each in everywhere:
        sources = {source["configMapRef"]["name"] for source in each.get("envFrom", [])}
        yield from (f"no config map {name}" for name in sources - maps)
        ports = [port.get("name", "") for port in each.get("ports", [])]
        if ports:  # with the node's network each is a host port: a second pod would find no place on the node
            yield f"{each['name']} has ports, which a rolling update with surge does not go with"
        for probe in PROBES:
            for action in ("httpGet", "tcpSocket"):
                port = each.get(probe, {}).get(action, {}).get("port", 0)
                if isinstance(port, str) and port not in ports:
                    yield f"no port {port}"


@pytest.mark.parametrize("folder", [*FOLDERS, UNINSTALL])
def test_it_is_what_kubernetes_knows(folder: str) -> None:
    documents = rendered(folder)
    for document in documents:
        for version in ("1.27", "1.37"):
            kubernetes_validate.validate(document, version, strict=True)
    assert list(faults(documents)) == []


def test_a_kustomization_of_your_own_changes_settings_and_image(tmp_path: Path) -> None:
    """As docs/deploy.md shows it, beside a copy of the manifests, since its paths are relative."""
    text = (ROOT / "docs" / "deploy.md").read_text()
    ((mine,),) = [re.findall(r"```yaml\n(# my-nodes/kustomization.yaml\n.*?)```", text, flags=re.DOTALL)]
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    for name, made in (("my-nodes", mine), ("my-nodes-uninstall", mine.replace("/kubernetes\n", f"/{UNINSTALL}\n"))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "kustomization.yaml").write_text(made)
        documents = rendered(str(tmp_path / name))
        (settings,) = of_kind("ConfigMap", documents)
        assert settings["data"]["SIDECAR_IP_ADDRESS"] == "10.96.0.7"
        assert settings["data"]["SIDECAR_SETUP_IPTABLES"] == "true"
        assert {each["image"] for each in containers(documents)} == {"registry.my.example/sidecar:1"}
        assert list(faults(documents)) == []


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda made: made["metadata"]["labels"].clear(), "the selector"),
        (lambda made: made["spec"]["volumes"].pop(), "no volume"),
        (lambda made: made["spec"]["volumes"].append({"name": "more", "emptyDir": {}}), "volume more is not used"),
        (lambda made: made["spec"]["containers"][0].update(name="setup"), "two containers"),
        (lambda made: made["spec"]["containers"][0]["envFrom"][0]["configMapRef"].update(name="x"), "no config map x"),
        (lambda made: made["spec"]["containers"][0].update(ports=[{"containerPort": 443}]), "surge"),
        (
            lambda made: made["spec"]["containers"][0].update(livenessProbe={"httpGet": {"port": "health"}}),
            "no port health",
        ),
    ],
)
def test_faults_are_found(documents: list[Manifest], damage: Callable[[Any], object], told: str) -> None:
    damaged = copy.deepcopy(documents)
    (daemon_set,) = of_kind("DaemonSet", damaged)
    damage(daemon_set["spec"]["template"])
    assert any(told in fault for fault in faults(damaged))


def loaded(documents: list[Manifest], container: Manifest, mocker: MockerFixture) -> Options:
    """Read the container's settings as the program does; all of them must be known."""
    mocker.patch.dict(os.environ, environment(container, documents), clear=True)
    options, warnings = sources.load(invocation.parse(container.get("args", [])))
    assert warnings == []
    return options


def test_the_settings_are_the_programs_own(documents: list[Manifest], mocker: MockerFixture) -> None:
    setup, sidecar = (loaded(documents, each, mocker) for each in containers(documents, PROGRAM))
    assert setup.ip_address == sidecar.ip_address == (IPv4Address("10.96.0.2"),)
    assert (setup.daemon, setup.cleanup) == (False, False)
    assert (sidecar.daemon, sidecar.cleanup) == (True, False)  # a container that is restarted leaves no gap


def test_the_uninstall_removes_what_was_installed(uninstall: list[Manifest], mocker: MockerFixture) -> None:
    installed = rendered(FOLDERS[0])
    assert of_kind("ConfigMap", uninstall) == of_kind("ConfigMap", installed)
    cleanup, done = containers(uninstall)
    setup, _ = containers(installed)
    assert cleanup["args"] == ["cleanup"]
    assert loaded(uninstall, cleanup, mocker).cleanup_timeout < pod(uninstall)["spec"]["terminationGracePeriodSeconds"]
    for each in ("image", "envFrom", "securityContext", "volumeMounts", "resources"):
        assert cleanup[each] == setup[each]
    assert done["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    for each in ("hostNetwork", "nodeSelector", "tolerations", "priorityClassName"):  # on the very nodes
        assert pod(uninstall)["spec"][each] == pod(installed)["spec"][each]
    types = [
        {each["hostPath"]["path"]: each["hostPath"]["type"] for each in volumes_of_the_node(made)}
        for made in (uninstall, installed)
    ]
    assert types[0] == types[1]
    names = {pod(made)["metadata"]["labels"]["app.kubernetes.io/name"] for made in (uninstall, installed)}
    assert len(names) == 2  # neither takes the other's pods for its own


def test_liveness_judges_a_hang_and_a_start_has_its_time(documents: list[Manifest]) -> None:
    _, sidecar = containers(documents, PROGRAM)
    startup, liveness, readiness = (sidecar[probe] for probe in PROBES)
    assert startup["periodSeconds"] * startup["failureThreshold"] >= LONGEST_START
    assert liveness["periodSeconds"] * liveness["failureThreshold"] >= SHORTEST_HANG
    assert liveness["timeoutSeconds"] <= liveness["periodSeconds"]  # or a hang would be judged later than that
    assert readiness["periodSeconds"] <= 5  # a rolling update waits for it on each node


def test_each_of_our_containers_has_what_it_needs_and_no_more(documents: list[Manifest]) -> None:
    ours = list(containers(documents, PROGRAM))
    assert [each["name"] for each in ours] == ["setup", "sidecar"]
    for each in ours:
        assert each["image"].endswith(f":{__version__}")
        assert each["securityContext"] == {
            "runAsUser": 0,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]},
        }
        assert {mount["mountPath"] for mount in each["volumeMounts"]} == {
            str(xtables_lock.DEFAULT),
            str(claims.DIRECTORY),
        }
    types = {each["hostPath"]["path"]: each["hostPath"]["type"] for each in volumes_of_the_node(documents)}
    assert types == {str(xtables_lock.DEFAULT): "FileOrCreate", str(claims.DIRECTORY): "DirectoryOrCreate"}


def test_probes_and_scrapes_go_to_where_the_program_answers(documents: list[Manifest], mocker: MockerFixture) -> None:
    _, sidecar = containers(documents, PROGRAM)
    address = loaded(documents, sidecar, mocker).health_address
    probed = [(sidecar[probe]["httpGet"]["path"], sidecar[probe]["httpGet"]["port"]) for probe in PROBES]
    assert probed == [("/healthz", address.port), ("/healthz", address.port), ("/readyz", address.port)]
    assert pod(documents)["metadata"]["annotations"]["prometheus.io/port"] == str(address.port)


def test_the_pod_monitor_finds_the_sidecar(mocker: MockerFixture) -> None:
    """Its relabelings, done as Prometheus does them: regular expressions match the whole of a label."""
    (monitor,) = of_kind("PodMonitor", rendered("kubernetes/podmonitor"))
    installed = rendered(FOLDERS[0])
    assert monitor["spec"]["selector"]["matchLabels"].items() <= pod(installed)["metadata"]["labels"].items()
    assert monitor["metadata"]["namespace"] == of_kind("DaemonSet", installed)[0]["metadata"]["namespace"]
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    *_, sidecar = containers(installed, PROGRAM)
    port = loaded(installed, sidecar, mocker).health_address.port

    def relabelled(**meta: str) -> dict[str, str] | None:
        labels = {f"__meta_kubernetes_pod_{name}": value for name, value in meta.items()}
        for each in endpoint["relabelings"]:
            value = ";".join(labels.get(name, "") for name in each.get("sourceLabels", []))
            found = re.fullmatch(each.get("regex", "(.*)"), value)
            if found is None and each["action"] == "keep":
                return None
            if found and each["action"] == "replace":
                labels[each["targetLabel"]] = found.expand(each.get("replacement", "$1").replace("$1", r"\1"))
        return {name: value for name, value in labels.items() if not name.startswith("__meta")}

    made = relabelled(container_name=sidecar["name"], ip="192.0.2.7", node_name="n")
    assert made == {"__address__": f"192.0.2.7:{port}", "node": "n", "job": PROGRAM}
    made = relabelled(container_name=sidecar["name"], ip="fd00::7", node_name="n")
    assert made == {"__address__": f"[fd00::7]:{port}", "node": "n", "job": PROGRAM}
    assert relabelled(container_name="proxy", ip="192.0.2.7", node_name="n") is None
    assert f'job="{PROGRAM}"' in (DEPLOY / "prometheus-rules.yaml").read_text()


def volumes_of_the_node(documents: list[Manifest]) -> list[Manifest]:
    return [volume for volume in pod(documents)["spec"]["volumes"] if "hostPath" in volume]


def test_the_image_has_the_version_of_the_program() -> None:
    assert f'org.opencontainers.image.version="{__version__}"' in (ROOT / "Dockerfile").read_text()


def test_the_image_is_made_of_files_that_are_there() -> None:
    kept = re.findall(r"^!(.+)", (ROOT / ".dockerignore").read_text(), flags=re.MULTILINE)
    assert [name for name in kept if not (ROOT / name).exists()] == []


def test_the_image_is_made_of_the_versions_that_are_tested() -> None:
    def pinned(name: str) -> set[str]:
        return set(re.findall(r"^[\w-]+==\S+", (ROOT / name).read_text(), flags=re.MULTILINE))

    assert pinned("requirements-metrics.txt") | pinned("requirements-build.txt") < pinned("requirements-dev.txt")


def test_systemd_knows_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    text = UNIT.read_text()
    for program in set(re.findall(r"=(/\S+/bin/\S+)", text)):  # it wants them to be there
        text = text.replace(program, "/bin/true")
    (tmp_path / UNIT.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / UNIT.name)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert [line for line in done.stderr.splitlines() if UNIT.name in line] == []
    assert done.returncode == 0


def test_the_unit_fits_the_program() -> None:
    unit = RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment] # the documented way to keep capitals
    unit.read_string(UNIT.read_text())
    service = unit["Service"]
    assert service["ExecStart"].endswith(f"/bin/{PROGRAM}")
    assert Path("/run") / service["RuntimeDirectory"] == claims.DIRECTORY
    assert service["ReadWritePaths"] == str(xtables_lock.DEFAULT.parent)
    assert service["RestartPreventExitStatus"] == "2"
