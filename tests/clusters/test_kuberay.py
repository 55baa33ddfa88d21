"""The Kubernetes files, by a strict schema of what they use, and what they promise."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator, ValidationError

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "clusters" / "kuberay"
SCHEMA = Draft202012Validator(yaml.safe_load((Path(__file__).parent / "kubernetes_schema.yaml").read_text()))


def read(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def cluster_specs() -> list[dict[str, Any]]:
    (cluster,), (job,) = read("raycluster.yaml"), read("rayjob.yaml")
    return [cluster["spec"], job["spec"]["rayClusterSpec"]]


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.name)
def test_fields_are_known_and_complete(path: Path) -> None:
    for document in read(path.name):
        SCHEMA.validate(document)


@pytest.mark.parametrize("change", ["minReplica", "no template", "number as text", "no mode of authentication"])
def test_the_schema_notices(change: str) -> None:
    document = copy.deepcopy(read("raycluster.yaml")[0])
    workers = document["spec"]["workerGroupSpecs"][0]
    if change == "minReplica":
        workers["minReplica"] = workers.pop("minReplicas")
    elif change == "no template":
        del document["spec"]["headGroupSpec"]["template"]
    elif change == "number as text":
        workers["replicas"] = "2"
    else:
        document["spec"]["authOptions"]["mode"] = "none"
    with pytest.raises(ValidationError):
        SCHEMA.validate(document)


def test_workers_are_spot_with_gpus_and_the_head_is_neither() -> None:
    for spec in cluster_specs():
        (workers,) = spec["workerGroupSpecs"]
        worker, head = workers["template"]["spec"], spec["headGroupSpec"]["template"]["spec"]
        assert worker["nodeSelector"] == {"cloud.google.com/gke-spot": "true"}
        assert worker["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "8"
        required = head["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        (rule,) = required["nodeSelectorTerms"][0]["matchExpressions"]
        assert rule == {"key": "cloud.google.com/gke-spot", "operator": "DoesNotExist"}
        assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_the_two_clusters_differ_in_who_reaches_the_dashboard_alone() -> None:
    cluster, job = cluster_specs()
    assert cluster["headGroupSpec"]["rayStartParams"].pop("dashboard-host") == "127.0.0.1"
    assert cluster == job


def test_every_pod_is_under_the_network_policy_and_has_the_runs() -> None:
    claim, policy = read("shared.yaml")
    labels = policy["spec"]["podSelector"]["matchLabels"]
    assert policy["spec"]["ingress"][0] == {"from": [{"podSelector": {"matchLabels": labels}}]}
    for spec in cluster_specs():
        for template in [spec["headGroupSpec"]["template"], *(group["template"] for group in spec["workerGroupSpecs"])]:
            assert template["metadata"]["labels"] == labels
            (volume,), (container,) = template["spec"]["volumes"], template["spec"]["containers"]
            assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
            assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": "/runs"}]
        assert spec["authOptions"] == {"mode": "token"}
