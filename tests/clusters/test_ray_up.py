"""The `ray up` files, by Ray's own schema, and what they promise about machines, versions and who may reach them."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parent.parent.parent
CLUSTERS = ROOT / "clusters"
KINDS = ["aws", "gcp", "onprem"]


def read(kind: str) -> dict[str, Any]:
    return yaml.safe_load((CLUSTERS / f"{kind}.yaml").read_text())


@pytest.mark.parametrize("kind", KINDS)
def test_ray_accepts_it(kind: str) -> None:
    config = prepare_config(read(kind))
    validate_config(config)
    with pytest.raises(ValidationError, match="max_worker"):
        validate_config(config | {"max_worker": 1})


@pytest.mark.parametrize("kind", KINDS)
def test_every_ray_asks_for_the_token_and_no_dashboard_is_public(kind: str) -> None:
    config = read(kind)
    starts = {role: config[f"{role}_start_ray_commands"] for role in ("head", "worker")}
    assert all("RAY_AUTH_MODE=token" in commands[1] for commands in starts.values())
    assert "--dashboard-host=127.0.0.1" in starts["head"][1]
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert config["setup_commands"][0] == "chmod 600 ~/.ray/auth_token"


@pytest.mark.parametrize("kind", KINDS)
def test_nodes_install_what_the_constraints_pin(kind: str) -> None:
    config = read(kind)
    sources = {path: ROOT / local for path, local in config["file_mounts"].items() if path.startswith("~/tt-ray/")}
    assert {"~/tt-ray/pyproject.toml", "~/tt-ray/constraints.txt"} <= set(sources)
    assert all(source.is_file() for source in sources.values())
    installs = [command for command in config["setup_commands"] if "uv pip install" in command]
    assert len(installs) == 1 and "-r pyproject.toml --extra demo --constraint constraints.txt" in installs[0]


@pytest.mark.parametrize("kind", KINDS)
def test_shellcheck_has_nothing_to_say_of_its_commands(kind: str) -> None:
    config = read(kind)
    commands = [command for key, value in config.items() if key.endswith("_commands") for command in value]
    for node in config.get("available_node_types", {}).values():
        commands += node.get("initialization_commands", [])
    shellcheck = [Path(sys.executable).parent / "shellcheck", "--shell=bash", "-"]
    answer = subprocess.run(shellcheck, input="\n".join([*commands, ""]), capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout


def test_the_clouds_workers_are_spot_and_their_heads_are_not() -> None:
    aws, gcp = (read(kind)["available_node_types"] for kind in ("aws", "gcp"))
    assert aws["spot"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in aws["head"]["node_config"]
    assert gcp["spot"]["node_config"]["scheduling"]["provisioningModel"] == "SPOT"
    assert "scheduling" not in gcp["head"]["node_config"]
    for kind in ("aws", "gcp"):
        config = read(kind)
        assert config["head_node_type"] == "head" and config["available_node_types"]["head"]["resources"] == {"CPU": 0}
        assert config["available_node_types"]["spot"]["resources"]["GPU"] == 8
        assert f"preemption.py {kind}" in config["worker_start_ray_commands"][1]


def test_awss_machines_let_in_each_other_and_ssh() -> None:
    resources = yaml.load((CLUSTERS / "aws-once.yaml").read_text(), _CloudFormation)["Resources"]
    group = resources["Machines"]["Properties"]
    assert [(rule["FromPort"], rule["ToPort"]) for rule in group["SecurityGroupIngress"]] == [(22, 22)]
    inside = resources["MachinesAmongThemselves"]["Properties"]
    assert inside["GroupId"] == inside["SourceSecurityGroupId"] == "Machines.GroupId"
    config = read("aws")
    assert config["provider"]["security_group"] == {"GroupName": group["GroupName"]}
    profiles = {resources[f"{role}Profile"]["Properties"]["InstanceProfileName"] for role in ("Head", "Worker")}
    types = config["available_node_types"].values()
    assert {node["node_config"]["IamInstanceProfile"]["Name"] for node in types} == profiles


def test_gcps_machines_carry_the_tag_of_the_firewall_rules() -> None:
    config = read("gcp")
    for node in config["available_node_types"].values():
        assert node["node_config"]["tags"] == {"items": ["tt-ray"]}
        subnetwork = node["node_config"]["networkInterfaces"][0]["subnetwork"]
        assert subnetwork == f"regions/{config['provider']['region']}/subnetworks/tt-ray"


class _CloudFormation(yaml.SafeLoader):
    """Reads `!Ref X` and its like as X."""


_CloudFormation.add_multi_constructor("!", lambda loader, suffix, node: loader.construct_scalar(node))
