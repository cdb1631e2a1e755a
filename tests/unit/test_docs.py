"""README.md and docs/: links and figures hold, and each command is run by a test or says why not.

In these documents a block without a language is commands for a shell; with `$ ` before some lines, only those are. What
docs/troubleshooting.md shows with output is run by e2e/test_troubleshooting.py.
"""

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from sidecar import PROGRAM
from sidecar.settings import invocation
from support.manifests import DEPLOY, of_kind, rendered
from support.program import PROGRAM as INSTALLED

ROOT: Final = DEPLOY.parent
README: Final = ROOT / "README.md"
GUIDES: Final = [README, *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS: Final = [*GUIDES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]

LONGEST_README: Final = 180  # lines

_BLOCK: Final = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK: Final = re.compile(r"\]\(([^)\s]+)\)")
_HEADING: Final = re.compile(r"^#+ (.*)$", re.MULTILINE)

_NODE: Final = "e2e/test_status.py::test_a_broken_node_is_told_and_the_plan_mends_it"
_UNIT: Final = "e2e/image/test_unit.py::test_the_unit"
_MANIFESTS: Final = "unit/test_deploy.py::test_it_is_what_kubernetes_knows"
_FLEET = "no: 100 nodes take minutes; a test runs 8"
_FLEET_OF_8 = "e2e/test_scripts.py::test_fleet_has_all_nodes_right_after_chaos_and_an_update_of_all"
_ENGINE: Final = "no: tests have no Docker engine; scripts/test-image builds the same Dockerfile with buildah"
_CLUSTER: Final = "no: tests have no cluster"
_INSTALLS: Final = "no: it changes the machine; the image's tests start what these lines install"
_ITSELF: Final = "no: it is what runs the tests"

#: Command → the test that runs it, or something that differs from it in names only; or `no:` and why not.
RUN_BY: Final = {
    "scripts/run": "e2e/test_scripts.py::test_ctrl_c_shows_the_cleanup",
    "scripts/test": _ITSELF,
    "scripts/test-image": _ITSELF,
    "scripts/test tests/e2e/test_proxy.py": _ITSELF,
    "scripts/demo": "e2e/test_scripts.py::test_the_demo_shows_what_it_promises",
    "scripts/fleet": _FLEET,
    "scripts/fleet --nodes=8 --seconds=10": _FLEET_OF_8,
    "scripts/fleet --seed=1 --picture=docs/fleet.svg --output=json": _FLEET,
    "scripts/faults": "e2e/test_proxy.py::test_under_load_a_fault_costs_no_more_than_it_must",
    "docker build --tag registry.example.com/apiserver-proxy-sidecar:0.2.0 .": _ENGINE,
    "docker push registry.example.com/apiserver-proxy-sidecar:0.2.0": "no: tests have no registry",
    "sed -i 's/=10.96.0.2$/=10.96.0.7/' deploy/kubernetes/settings/sidecar.env": (
        "unit/test_docs.py::test_the_manifests_take_an_address_as_the_readme_says"
    ),
    "kubectl kustomize deploy/kubernetes": _MANIFESTS,
    "kubectl apply -k deploy/kubernetes": _CLUSTER,
    "python3 -m venv /opt/apiserver-proxy-sidecar": _INSTALLS,
    "/opt/apiserver-proxy-sidecar/bin/pip install .": _INSTALLS,
    "/opt/apiserver-proxy-sidecar/bin/apiserver-proxy-sidecar --ip-address=10.96.0.2 --setup-iptables": (
        "e2e/test_program.py::test_one_pass_and_what_it_says"
    ),
    "apiserver-proxy-sidecar status": _NODE,
    "apiserver-proxy-sidecar plan": _NODE,
    "apiserver-proxy-sidecar doctor": "e2e/test_troubleshooting.py::test_an_example_is_what_is_printed",
    "apiserver-proxy-sidecar status --watch": "e2e/test_status.py::test_watch_tells_each_change_and_ends_in_order",
    "apiserver-proxy-sidecar cleanup --ip-address=10.96.0.2 --setup-iptables": (
        "e2e/test_status.py::test_cleanup_removes_everything_and_says_what"
    ),
    "apiserver-proxy-sidecar status --output=json | jq -r "
    """'.items[] | select(.state != "present") | "\\(.state) \\(.name)"'""": (
        "no: jq is not installed; e2e/test_status.py holds the fields to the schema"
    ),
    "apt-get install iproute2 iptables python3-venv": _INSTALLS,
    "/opt/apiserver-proxy-sidecar/bin/pip install --require-hashes --requirement requirements.txt": _INSTALLS,
    "/opt/apiserver-proxy-sidecar/bin/pip install --no-deps .": _INSTALLS,
    "install -m 644 .env.example /etc/apiserver-proxy-sidecar.env": _INSTALLS,
    "install -m 644 deploy/systemd/apiserver-proxy-sidecar.service /etc/systemd/system/": _INSTALLS,
    "systemctl daemon-reload": _INSTALLS,
    "systemctl enable --now apiserver-proxy-sidecar": _UNIT,
    "systemctl disable --now apiserver-proxy-sidecar": _UNIT,
    "/opt/apiserver-proxy-sidecar/bin/apiserver-proxy-sidecar cleanup "
    "--env-file=/etc/apiserver-proxy-sidecar.env": _UNIT,
    "rm -r /opt/apiserver-proxy-sidecar /etc/apiserver-proxy-sidecar.env "
    "/etc/systemd/system/apiserver-proxy-sidecar.service": _INSTALLS,
    "kubectl -n kube-system exec POD -c sidecar -- apiserver-proxy-sidecar doctor": _CLUSTER,
    "kubectl debug node/NODE -it --profile=sysadmin --image=IMAGE -- "
    "apiserver-proxy-sidecar doctor --ip-address=10.96.0.2 --setup-iptables": _CLUSTER,
    "crictl exec $(crictl ps --name '^sidecar$' -q) apiserver-proxy-sidecar doctor": _CLUSTER,
    "docker run --rm --net=host --pid=host --privileged -v /run:/run IMAGE "
    "doctor --ip-address=10.96.0.2 --setup-iptables": _ENGINE,
    "nsenter --net=/proc/PID/ns/net apiserver-proxy-sidecar doctor": (
        "e2e/test_backend_choice.py::test_who_looks_looks_where_the_running_sidecar_works"
    ),
}


def anchors(text: str) -> list[str]:
    """Return the anchors of the headings, as GitHub makes them."""
    plain = (re.sub(r"\[(.*?)\]\(.*?\)|[`*]", r"\1", heading) for heading in _HEADING.findall(_BLOCK.sub("", text)))
    return [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in plain]


def commands(document: Path) -> Iterator[str]:
    for block in _BLOCK.finditer(document.read_text()):
        if block["language"]:
            continue
        lines = block["text"].splitlines()
        if shown := [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]:
            lines = [] if document.name == "troubleshooting.md" else shown
        for line in lines:
            if command := re.sub(r"(^|\s{2,})# .*", "", line):
                yield command


def all_commands() -> set[str]:
    return {command for document in GUIDES for command in commands(document)}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda each: each.name)
def test_links_lead_somewhere(document: Path) -> None:
    for link in _LINK.findall(_BLOCK.sub("", document.read_text())):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


def test_the_readme_leads_to_every_document() -> None:
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in _LINK.findall(README.read_text())}
    assert set(DOCUMENTS) - {README} <= linked


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= LONGEST_README


def test_the_figures_of_the_readme_are_those_of_the_document_that_it_names() -> None:
    text = README.read_text().partition("## What it costs")[2].partition("\n## ")[0]
    source = ""
    rows = re.findall(r"^\| (.*?) \| (.*\d.*?) \| (.*?) \|$", text, re.MULTILINE)
    assert len(rows) > 5
    for what, figure, measured_by in rows:
        if links := _LINK.findall(measured_by):
            source = (ROOT / links[0]).read_text()
        for number in re.findall(r"\d+(?:\.\d+)?", figure):
            assert re.search(rf"(?<![\d.]){re.escape(number)}(?![\d.]*\d)", source), (what, number)


def test_each_command_is_run_by_a_test_or_says_why_not() -> None:
    assert all_commands() == RUN_BY.keys()


def test_ci_runs_the_test_commands_of_the_readme() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert [line for line in lines if line.startswith("scripts/")] == [
        command for command in commands(README) if command.startswith("scripts/test")
    ]


@pytest.mark.parametrize("where", sorted(set(RUN_BY.values())))
def test_the_test_that_runs_a_command_is_there(where: str) -> None:
    if where.startswith("no: "):
        return
    file, name = where.split("::")
    assert f"\ndef {name}(" in (ROOT / "tests" / file).read_text()


def test_commands_of_this_program_have_no_mistakes() -> None:
    inline = {each for document in GUIDES for each in re.findall(rf"`({PROGRAM} [^`…]+)`", document.read_text())}
    found = [
        re.search(rf"(?:^|/bin/|-- |\) |ns/net ){PROGRAM} ([^|]+)", command) for command in all_commands() | inline
    ]
    words = [shlex.split(each[1]) for each in found if each]
    assert len(words) > 10
    for each in words:
        assert not invocation.parse(each).faults


def test_the_mistakes_in_the_settings_guide_are_reported_like_that() -> None:
    text = (ROOT / "docs" / "settings.md").read_text()
    ((line, told),) = re.findall(rf"^\$ {PROGRAM} (--ip-adress.*)\n((?:{PROGRAM}: .*\n)+)", text, re.MULTILINE)
    done = subprocess.run([INSTALLED, *shlex.split(line)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", told)


def test_the_manifests_take_an_address_as_the_readme_says(tmp_path: Path) -> None:
    (command,) = [each for each in commands(README) if each.startswith("sed ")]
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    subprocess.run(shlex.split(command), cwd=tmp_path, check=True)
    (settings,) = of_kind("ConfigMap", rendered(str(tmp_path / "deploy" / "kubernetes")))
    assert settings["data"]["SIDECAR_IP_ADDRESS"] == "10.96.0.7"
