"""What docs/cluster.md shows is whole: manifests that KubeRay takes, a script that runs, commands that exist."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import typer
import yaml

from bitworth.cli.app import app
from bitworth.ledger import Ledger

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


#: Fields of KubeRay's v1 that we use, with those it does not do without, from its types of RayJob and RayCluster.
CLUSTER = {"headGroupSpec"}, {"headGroupSpec", "workerGroupSpecs", "rayVersion", "enableInTreeAutoscaling", "suspend"}
HEAD = {"rayStartParams", "template"}, {"rayStartParams", "template", "serviceType", "headService", "enableIngress"}
WORKERS = (
    {"rayStartParams", "template", "groupName", "minReplicas", "maxReplicas"},
    {"rayStartParams", "template", "groupName", "minReplicas", "maxReplicas", "replicas", "numOfHosts"},
)
JOB = (
    {"entrypoint"},
    {"entrypoint", "rayClusterSpec", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished"},
)


@pytest.mark.parametrize("kind", ["RayJob", "RayCluster"])
def test_manifests_hold_no_field_that_kuberay_lacks(kind: str) -> None:
    manifest = MANIFESTS[kind]
    cluster = cluster_of(manifest)
    held = [(CLUSTER, cluster), (HEAD, cluster["headGroupSpec"]), *((WORKERS, g) for g in cluster["workerGroupSpecs"])]
    if kind == "RayJob":
        held.append((JOB, manifest["spec"]))
    assert manifest.keys() == {"apiVersion", "kind", "metadata", "spec"}
    for (needed, known), found in held:
        assert needed <= found.keys() <= known


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["RayJob", "RayCluster"])
def test_kubernetes_takes_the_pods(kind: str) -> None:
    """By its own schema, where a field it lacks is an error."""
    kubernetes = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate (the `docs` extra)")
    for group in groups(MANIFESTS[kind]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, **group["template"]}
        kubernetes.validate(pod, "1.31", strict=True)
        pod["spec"] = {**pod["spec"], "volume": []}
        with pytest.raises(kubernetes.ValidationError):
            kubernetes.validate(pod, "1.31", strict=True)


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


SCONTROL = """#!/bin/bash
[[ "$*" == "show hostnames nodes[1-2]" ]] || exit 1
printf 'node1\\nnode2\\n'
"""
SRUN = """#!/bin/bash
node=
while [[ $1 == --* ]]; do [[ $1 == --nodelist=* ]] && node=${1#*=}; shift; done
echo "$node $*" >>"$CALLS"
[[ $1 == hostname ]] && { echo 127.0.0.1 10.0.0.1; exit; }
[[ $2 == start ]] && exec "$@" --num-cpus=1 --object-store-memory=80000000
exec "$@"
"""


@pytest.mark.slow
def test_the_slurm_script_runs_a_study_and_leaves_nothing(tmp_path: Path, tiny_study: dict[str, Any]) -> None:
    """Slurm's commands are stood in for, each node a raylet of this machine; all else is the script as it is shown."""
    pytest.importorskip("ray", reason="needs Ray (the `ray` extra)")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    (script,) = blocks("bash")
    assert script.count("6379") == 2
    (tmp_path / "job.sh").write_text(script.replace("6379", str(port)))
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({**tiny_study, "formats": ["baseline", "w8a8-fp"]}))
    for name, text in (("scontrol", SCONTROL), ("srun", SRUN)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    path = os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]])
    job = {"SLURM_JOB_NODELIST": "nodes[1-2]", "SLURM_SUBMIT_DIR": str(tmp_path), "CALLS": str(tmp_path / "calls")}
    ran = subprocess.run(
        ["bash", "job.sh"],
        cwd=tmp_path,
        env={**os.environ, **job, "PATH": path, "BITWORTH_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [" ".join(call.split()[:4]) for call in calls] == [
        "node1 hostname --ip-address",
        "node1 ray start --head",
        f"node2 ray start --address=127.0.0.1:{port}",
    ]
    ledger = Ledger(tmp_path / "out")
    assert ledger.read_plan()
    assert all(ledger.get(cell) is not None for cell in ledger.read_plan())
    assert not [one for one in psutil.process_iter(["cmdline"]) if str(port) in " ".join(one.info["cmdline"] or [])]
