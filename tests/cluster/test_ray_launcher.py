"""The configs of Ray's cluster launcher, against Ray's own validator and against what we promise about them."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import botocore.session
import googleapiclient
import jsonschema
import pytest
from botocore.validate import ParamValidator
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start

FILES = ["aws.yaml", "gcp.yaml"]
Config = dict[str, Any]


@pytest.fixture
def config(documents) -> Callable[[str], Config]:
    return lambda name: documents(f"ray/{name}")[0]


def validate(config: Config) -> Config:
    """What `ray up` does before it asks the cloud for anything."""
    prepared = prepare_config(json.loads(json.dumps(config)))
    validate_config(prepared)
    return prepared


@pytest.mark.parametrize("name", FILES)
def test_ray_takes_the_config(name, config):
    prepared = validate(config(name))
    assert prepared["setup_commands"] == prepared["head_setup_commands"] == []  # not Ray's own installation


@pytest.mark.parametrize("change", [
    {"max_workers": -1},
    {"max_worker": 4},
    {"head_node_type": "boss"},
    {"docker": {"image": "x", "container_name": "ktse", "run_option": []}},
    {"docker": {"head_image": "x", "container_name": "ktse"}},
    {"auth": {"ssh_user": "ubuntu", "password": "x"}},
    {"initialization_commands": "pip install x"},
    {"available_node_types": {"head": {"resources": {"CPU": 0.5}, "node_config": {}}}},
    {"available_node_types": {"head": {"resources": {}, "node_config": {}},
                              "gpu": {"resources": {}, "node_config": {}, "min_workers": 9}}},
])  # fmt: skip
@pytest.mark.parametrize("name", FILES)
def test_ray_refuses_a_mistake(name, change, config):
    with pytest.raises((jsonschema.ValidationError, ValueError, AssertionError)):
        validate(config(name) | change)


def aws_mistakes(node: Config) -> str:
    """What EC2's own model, which boto3 carries, says about a request for this machine."""
    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    return ParamValidator().validate(node | {"MinCount": 1, "MaxCount": 1}, shape).generate_report()


def gcp_schema(schema: Any) -> Any:
    """Compute Engine's own model, which Google's client carries, as JSON Schema without unknown fields."""
    if not isinstance(schema, dict):
        return schema
    out = {key: gcp_schema(schema[key]) for key in ("items", "additionalProperties") if key in schema}
    out |= {key: schema[key] for key in ("type", "enum") if key in schema}
    if "$ref" in schema:
        out["$ref"] = f"#/schemas/{schema['$ref']}"
    if schema.get("format") in ("int64", "uint64"):  # JSON's numbers are too short for them, so a string will do, too
        out["type"] = ["string", "integer"]
    if "properties" in schema:
        out["properties"] = {name: gcp_schema(value) for name, value in schema["properties"].items()}
        out["additionalProperties"] = False
    return out


def gcp_mistakes(node: Config) -> str:
    document = Path(googleapiclient.__file__).parent / "discovery_cache" / "documents" / "compute.v1.json"
    schemas = {name: gcp_schema(schema) for name, schema in json.loads(document.read_text())["schemas"].items()}
    found = jsonschema.Draft202012Validator({"$ref": "#/schemas/Instance", "schemas": schemas}).iter_errors(node)
    return "\n".join(error.message for error in found)


@pytest.mark.parametrize(("name", "mistakes"), [("aws.yaml", aws_mistakes), ("gcp.yaml", gcp_mistakes)])
def test_the_cloud_knows_every_field_of_its_machines(name, mistakes, config):
    for node in config(name)["available_node_types"].values():
        assert mistakes(node["node_config"]) == ""


@pytest.mark.parametrize(("mistakes", "node"), [
    (aws_mistakes, {"InstanceTyp": "m7i.xlarge"}),
    (aws_mistakes, {"InstanceMarketOptions": {"MarketTyp": "spot"}}),
    (aws_mistakes, {"SecurityGroupIds": "sg-1"}),
    (gcp_mistakes, {"scheduling": {"provisioning": "SPOT"}}),
    (gcp_mistakes, {"scheduling": {"provisioningModel": "CHEAP"}}),
    (gcp_mistakes, {"disks": [{"initializeParams": {"diskSizeGb": "many", "image": "x"}}]}),
])  # fmt: skip
def test_a_field_that_the_cloud_does_not_know_is_refused(mistakes, node):
    assert mistakes(node)


def start_options(commands: list[str]) -> dict[str, Any]:
    """The options of the one `ray start` among shell commands, as Ray itself parses them."""
    words = next(shlex.split(command) for command in commands if command.startswith("ray start"))
    return start.make_context("start", words[2:]).params


@pytest.mark.parametrize("name", FILES)
def test_nodes_start_with_options_that_ray_knows_and_the_dashboard_on_loopback(name, config):
    head = start_options(config(name)["head_start_ray_commands"])
    worker = start_options(config(name)["worker_start_ray_commands"])
    assert head["head"] and head["dashboard_host"] == "127.0.0.1"
    assert head["autoscaling_config"] == "~/ray_bootstrap_config.yaml"
    assert worker["address"] == f"$RAY_HEAD_IP:{head['port']}"


def test_an_option_that_ray_does_not_know_is_refused():
    with pytest.raises(Exception, match="No such option"):
        start_options(["ray start --head --dashboard-hots=127.0.0.1"])


def insecurities(config: Config) -> list[str]:
    found = []
    options = config["docker"]["run_options"]
    if "--env=RAY_AUTH_MODE=token" not in options:
        found.append("Ray asks nobody for a token")
    if any(word in option for option in options for word in ("--privileged", "docker.sock", "--user=0", "--publish")):
        found.append("a container that owns its machine")
    if "--dashboard-host=127.0.0.1" not in " ".join(config["head_start_ray_commands"]).split():
        found.append("dashboard")
    if config["provider"]["type"] == "aws":
        for name, node in config["available_node_types"].items():
            if not node["node_config"].get("IamInstanceProfile"):
                found.append(f"{name}: no role")
            if not node["node_config"].get("SecurityGroupIds"):
                found.append(f"{name}: Ray's own security group, open to all for SSH")
            if node["node_config"].get("MetadataOptions", {}).get("HttpTokens") != "required":
                found.append(f"{name}: the role's keys for every request")
    elif not config["available_node_types"]["gpu"]["node_config"].get("serviceAccounts"):
        found.append("gpu: no role")
    return found


@pytest.mark.parametrize("name", FILES)
def test_a_launched_cluster_opens_nothing_that_need_not_be_open(name, config):
    assert insecurities(config(name)) == []


@pytest.mark.parametrize(("path", "new", "found"), [
    ("docker/run_options", [], "Ray asks nobody for a token"),
    ("docker/run_options", ["--env=RAY_AUTH_MODE=token", "--privileged"], "a container that owns its machine"),
    ("head_start_ray_commands", ["ray start --head --dashboard-host=0.0.0.0"], "dashboard"),
    ("available_node_types/gpu/node_config/IamInstanceProfile", {}, "gpu: no role"),
    ("available_node_types/head/node_config/SecurityGroupIds", [],
     "head: Ray's own security group, open to all for SSH"),
    ("available_node_types/gpu/node_config/MetadataOptions", {}, "gpu: the role's keys for every request"),
])  # fmt: skip
def test_an_opened_config_is_noticed(path, new, found, config):
    opened = json.loads(json.dumps(config("aws.yaml")))
    *parents, last = path.split("/")
    value = opened
    for part in parents:
        value = value[part]
    value[last] = new
    assert found in insecurities(opened)


def test_workers_are_spot_machines_with_gpus_and_the_head_is_neither(config):
    aws, gcp = (config(name)["available_node_types"] for name in FILES)
    assert aws["gpu"]["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert gcp["gpu"]["node_config"]["scheduling"]["provisioningModel"] == "SPOT"
    assert "InstanceMarketOptions" not in aws["head"]["node_config"] and "scheduling" not in gcp["head"]["node_config"]
    for types in (aws, gcp):
        assert types["gpu"]["resources"]["GPU"] > 0 and types["gpu"]["min_workers"] < types["gpu"]["max_workers"]
        assert types["head"]["resources"] == {"CPU": 0}


@pytest.mark.parametrize("name", FILES)
def test_the_token_comes_as_a_folder_to_where_ray_looks_for_it(name, config):
    home = "/home/ktse"  # HOME in the images
    (mounted,) = config(name)["file_mounts"]
    assert f"{mounted}/auth_token" == f"{home}/.ray/auth_token"
