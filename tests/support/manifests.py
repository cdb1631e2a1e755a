"""What is in deploy/, as kubectl would apply it."""

import subprocess
from pathlib import Path
from typing import Any, Final

import yaml

from support.tools import tool

DEPLOY: Final = Path(__file__).parents[2] / "deploy"

#: One of kubectl's documents.
Manifest = dict[str, Any]


def rendered(folder: str) -> list[Manifest]:
    """Return the documents of `kubectl apply -k`, for a folder of deploy/ or a whole path."""
    argv = [tool("kubectl"), "kustomize", str(DEPLOY / folder)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # it warns of fields that are deprecated
    return list(yaml.safe_load_all(done.stdout))


def of_kind(kind: str, documents: list[Manifest]) -> list[Manifest]:
    return [document for document in documents if document["kind"] == kind]


def container(name: str, documents: list[Manifest]) -> Manifest:
    """Return a container of the pod, by its name."""
    spec = pod(documents)["spec"]
    (found,) = [each for each in [*spec["initContainers"], *spec["containers"]] if each["name"] == name]
    return dict(found)


def environment(each: Manifest, documents: list[Manifest]) -> dict[str, str]:
    """Return the variables that a container gets."""
    maps = {made["metadata"]["name"]: made["data"] for made in of_kind("ConfigMap", documents)}
    env: dict[str, str] = {}
    for source in each["envFrom"]:
        env |= maps[source["configMapRef"]["name"]]
    return env | {variable["name"]: variable["value"] for variable in each.get("env", [])}


def pod(documents: list[Manifest]) -> Manifest:
    """Return the pod that the DaemonSet among the documents would make."""
    (daemon_set,) = of_kind("DaemonSet", documents)
    template = daemon_set["spec"]["template"]
    metadata = {"name": daemon_set["metadata"]["name"], **template["metadata"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
