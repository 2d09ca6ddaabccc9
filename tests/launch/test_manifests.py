"""launch/k8s: the published shapes, and nothing that the launcher here would not understand."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from launch.options import parse
from launch.request import LaunchRequest
from llama import errors
from tests.helpers.programs import ROOT, started

FOLDER = ROOT / "launch" / "k8s"
LWS_SCHEMA = json.loads((ROOT / "tests" / "helpers" / "lws_schema.json").read_text())
KILL_LADDER_S = 15
OLDEST, NEWEST = "1.29", "1.37"
Manifest = dict[str, Any]
MANIFESTS: list[Manifest] = [
    manifest
    for path in sorted(FOLDER.glob("*.yaml"))
    for manifest in yaml.safe_load_all(path.read_text())
]
WORKLOADS = [of for of in MANIFESTS if of["kind"] in ("Job", "LeaderWorkerSet")]
INJECTED = {"LWS_GROUP_SIZE": "2", "LWS_LEADER_ADDRESS": "llama-0.llama.default"}
"""What a controller puts into the environment of every pod, besides the pod's number."""


def name_of(manifest: Manifest) -> str:
    return f"{manifest['kind']} {manifest['metadata']['name']}"


def of_kind(kind: str) -> Manifest:
    (found,) = (manifest for manifest in MANIFESTS if manifest["kind"] == kind)
    return found


def pod_template(workload: Manifest) -> Manifest:
    spec = workload["spec"]
    template: Manifest = spec.get("template") or spec["leaderWorkerTemplate"]["workerTemplate"]
    return template


def container(workload: Manifest) -> Manifest:
    only: Manifest
    (only,) = pod_template(workload)["spec"]["containers"]
    return only


def check(manifest: Manifest, *, version: str) -> None:
    """Raises ValidationError; fields that the schema does not know are errors."""
    if manifest["kind"] == "LeaderWorkerSet":
        jsonschema.validate(manifest, LWS_SCHEMA)
        template = pod_template(manifest)
        manifest = {"apiVersion": "v1", "kind": "PodTemplate", "template": template}
    kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("manifest", MANIFESTS, ids=name_of)
def test_a_manifest_has_the_published_shape(manifest: Manifest, version: str) -> None:
    check(manifest, version=version)


@pytest.mark.parametrize("manifest", MANIFESTS, ids=name_of)
def test_a_misspelt_field_is_seen(manifest: Manifest) -> None:
    broken = json.loads(json.dumps(manifest))
    broken["spec"]["replica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="replica"):
        check(broken, version=NEWEST)


def test_a_misspelt_field_of_a_pod_is_seen() -> None:
    for workload in json.loads(json.dumps(WORKLOADS)):
        pod_template(workload)["spec"]["terminationGraceSeconds"] = 1
        with pytest.raises(jsonschema.ValidationError, match="terminationGraceSeconds"):
            check(workload, version=NEWEST)


def words_of(workload: Manifest, pod: int, **injected: str) -> list[str]:
    """The launcher's arguments in one pod, as the kubelet fills them in."""
    variables = {**INJECTED, "JOB_COMPLETION_INDEX": str(pod), "LWS_WORKER_INDEX": str(pod)}
    variables.update(injected)
    return [
        re.sub(r"\$\((\w+)\)", lambda match: variables[match[1]], word)
        for word in container(workload)["args"]
    ]


def request_of(workload: Manifest) -> LaunchRequest:
    """What the launcher of pod 1 understands."""
    request, is_dry_run = parse(words_of(workload, 1))
    assert not is_dry_run
    return request


@pytest.mark.parametrize("workload", WORKLOADS, ids=name_of)
def test_the_launcher_understands_what_a_pod_tells_it(workload: Manifest) -> None:
    request = request_of(workload)
    assert container(workload)["command"] == ["llama-launch"]
    assert request.program[:3] == ("-m", "llama", "generate")
    assert (request.nodes.nnodes, request.nodes.node_rank) == (2, 1)
    gpus = container(workload)["resources"]["limits"]["nvidia.com/gpu"]
    assert request.nproc == gpus
    assert request.tp and request.pp and request.tp * request.pp == 2 * gpus
    mounts = {mount["mountPath"] for mount in container(workload)["volumeMounts"]}
    assert {str(request.log_dir), "/dev/shm", "/models"} <= mounts
    (port,) = container(workload)["ports"]
    assert port["containerPort"] == request.nodes.master_port


@pytest.mark.parametrize("workload", WORKLOADS, ids=name_of)
def test_kubernetes_waits_longer_than_the_launcher_needs(workload: Manifest) -> None:
    request, room_s = request_of(workload), 10
    grace_s = pod_template(workload)["spec"]["terminationGracePeriodSeconds"]
    assert grace_s >= request.shutdown_timeout_s + KILL_LADDER_S + room_s
    probe = container(workload).get("startupProbe")
    if probe:  # the launcher gives up first, and says who is missing
        limit_s = probe["periodSeconds"] * probe["failureThreshold"]
        assert limit_s > request.limits_s["init_timeout_s"]


@pytest.mark.parametrize("workload", WORKLOADS, ids=name_of)
def test_only_pods_of_a_workload_reach_its_ports(workload: Manifest) -> None:
    own = pod_template(workload)["metadata"]["labels"]
    name = workload["metadata"]["name"]
    (policy,) = (
        found["spec"]
        for found in MANIFESTS
        if found["kind"] == "NetworkPolicy" and found["metadata"]["name"] == name
    )
    assert policy["podSelector"] == {"matchLabels": own}
    assert policy["ingress"] == [{"from": [{"podSelector": {"matchLabels": own}}]}]
    assert policy["policyTypes"] == ["Ingress"]


def test_pods_of_the_job_find_node_0_before_they_are_ready() -> None:
    job, service = of_kind("Job"), of_kind("Service")
    template = pod_template(job)
    assert template["spec"]["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == template["metadata"]["labels"]
    assert (service["spec"]["clusterIP"], service["spec"]["publishNotReadyAddresses"]) == (
        "None",
        True,
    )
    address = f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert f"--master_addr={address}" in container(job)["args"]
    n_pods = job["spec"]["completions"]
    assert f"--nnodes={n_pods}" in container(job)["args"]
    assert job["spec"]["parallelism"] == n_pods


def test_the_job_is_tried_again_only_where_that_may_help() -> None:
    (rule,) = (
        rule["onExitCodes"]
        for rule in of_kind("Job")["spec"]["podFailurePolicy"]["rules"]
        if rule["action"] == "FailJob"
    )
    raised = {
        error.exit_code
        for error in vars(errors).values()
        if isinstance(error, type) and issubclass(error, errors.LlamaError)
    }
    may_help = {
        error.exit_code
        for error in (errors.PeerLostError, errors.RankTimeoutError, errors.RankMismatchError)
    }
    assert rule == {"operator": "In", "values": sorted(raised - may_help)}


def test_the_startup_probe_passes_once_ranks_write(tmp_path: Path) -> None:
    (probe,) = filter(None, (container(workload).get("startupProbe") for workload in WORKLOADS))
    command = [word.replace("/logs/", f"{tmp_path}/") for word in probe["exec"]["command"]]
    assert subprocess.run(command, capture_output=True, timeout=60).returncode != 0
    (tmp_path / "rank-8.log").touch()  # as --log_dir names them
    assert subprocess.run(command, capture_output=True, timeout=60).returncode == 0


@pytest.mark.nightly
@pytest.mark.parametrize("workload", WORKLOADS, ids=name_of)
def test_two_pods_complete_the_prompt(workload: Manifest, tmp_path: Path) -> None:
    """The launchers of both pods with the manifest's own arguments, but for place and size."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    here = {
        "--master_addr=llama-batch-0.llama-batch": "--master_addr=localhost",
        "--master_port=29500": f"--master_port={port}",
        "--nproc=8": "--nproc=1",
        "--tp=8": "--tp=1",
        "/models/llama-2-70b": str(ROOT / "examples" / "demo_model"),
    }
    with ExitStack() as stack:
        pods = []
        for pod in (0, 1):
            logs = tmp_path / str(pod)
            words = words_of(workload, pod, LWS_LEADER_ADDRESS="localhost")
            words = [here.get(word, word).replace("/logs", str(logs)) for word in words]
            pods.append(stack.enter_context(started(["-m", "launch", *words])))
        for pod, process in enumerate(pods):
            stdout, stderr = process.communicate(timeout=90)
            assert process.returncode == 0, stderr
            assert ("The capital of Ollo is Pim." in stdout) == (pod == 0)
            assert (tmp_path / str(pod) / f"rank-{pod}.log").exists()
