"""What docs/cluster.md shows is whole: manifests with the fields KubeRay asks for, commands and options that exist."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from bitworth.cli.app import app

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "cluster.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.M | re.S)


MANIFESTS = {found["kind"]: found for found in map(yaml.safe_load, blocks("yaml"))}


def cluster_of(manifest: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = manifest["spec"]
    return spec["rayClusterSpec"] if manifest["kind"] == "RayJob" else spec


def groups(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    spec = cluster_of(manifest)
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def containers(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    return [one for group in groups(manifest) for one in group["template"]["spec"]["containers"]]


def commands() -> list[str]:
    lines = [line for block in (*blocks("sh"), *blocks("bash")) for line in block.splitlines()]
    return [*(line for line in lines if line.startswith("bitworth ")), MANIFESTS["RayJob"]["spec"]["entrypoint"]]


@pytest.mark.parametrize("kind", ["RayJob", "RayCluster"])
def test_manifests_have_what_kuberay_asks_for(kind: str) -> None:
    manifest = MANIFESTS[kind]
    assert manifest["apiVersion"] == "ray.io/v1"
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,45}[a-z0-9])?", manifest["metadata"]["name"])
    for group in groups(manifest):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values()), "KubeRay takes strings only"
    for group in cluster_of(manifest)["workerGroupSpecs"]:
        assert group["groupName"]
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert cluster_of(manifest)["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


@pytest.mark.parametrize("kind", ["RayJob", "RayCluster"])
def test_pods_are_whole(kind: str) -> None:
    """One image for all; what is mounted is a volume of the pod; Ray's view of a pod is its limits."""
    found = containers(MANIFESTS[kind])
    assert len({one["image"] for one in found}) == 1
    for one in found:
        assert one["resources"]["requests"] == one["resources"]["limits"]
        assert {"cpu", "memory"} <= one["resources"]["limits"].keys()
    for group in groups(MANIFESTS[kind]):
        pod = group["template"]["spec"]
        mounted = {mount["name"] for one in pod["containers"] for mount in one.get("volumeMounts", [])}
        assert mounted <= {volume["name"] for volume in pod.get("volumes", [])}


def test_a_job_ends_its_nodes_and_finds_its_files() -> None:
    spec = MANIFESTS["RayJob"]["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    mounts = {mount["mountPath"] for one in containers(MANIFESTS["RayJob"]) for mount in one["volumeMounts"]}
    words = shlex.split(spec["entrypoint"])
    assert all(any(word.startswith(mount + "/") for mount in mounts) for word in words if word.startswith("/"))


def test_drivers_outside_reach_the_client_port() -> None:
    head = containers(MANIFESTS["RayCluster"])[0]
    ports = {port["containerPort"] for port in head["ports"]}
    forwarded = re.findall(r"port-forward service/(\S+) (\d+):(\d+)", PAGE)
    assert forwarded == [(f"{MANIFESTS['RayCluster']['metadata']['name']}-head-svc", "10001", "10001")]
    assert int(forwarded[0][2]) in ports


@pytest.mark.parametrize("command", commands())
def test_commands_are_ones_that_exist(command: str) -> None:
    words = shlex.split(command, comments=True)
    run = typer.main.get_command(app).commands[words[1]]  # type: ignore[attr-defined]
    known = {name for parameter in run.params for name in parameter.opts}
    asked = {word for word in words if word.startswith("--")}
    assert asked
    assert asked <= known


def test_the_image_installs_extras_that_exist() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text())["project"]
    (block,) = blocks("dockerfile")
    extras = re.findall(r"bitworth\[([\w,]+)\]", block + PAGE)
    assert extras
    assert {name for found in extras for name in found.split(",")} <= project["optional-dependencies"].keys()
    tags = {one["image"].rpartition(":")[2] for manifest in MANIFESTS.values() for one in containers(manifest)}
    assert tags == {project["version"]}


def test_the_slurm_script_is_bash() -> None:
    (script,) = blocks("bash")
    checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert script.startswith("#!/bin/bash\n#SBATCH ")
    assert script.count("#SBATCH --") >= 4
