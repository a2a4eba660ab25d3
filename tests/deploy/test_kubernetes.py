"""The Kubernetes manifests: valid by the published schemas, and true to the server."""

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from serving.keys import OPEN_PATHS
from serving.settings import PREFIX, ServerSettings

DEPLOY = Path(__file__).parents[2] / "deploy"
FILES = ("common", "cpu", "gpu")
# The oldest and the newest release whose schemas the validator brings along.
RELEASES = ("1.25", kubernetes_validate.latest_version())
BENTO_USER = 1034

Manifest = dict[str, Any]


def manifests(name: str) -> list[Manifest]:
    return list(yaml.safe_load_all((DEPLOY / "kubernetes" / f"{name}.yaml").read_text()))


def find(name: str, kind: str) -> Manifest:
    return next(manifest for manifest in manifests(name) if manifest["kind"] == kind)


def pod(name: str) -> Manifest:
    return find(name, "Deployment")["spec"]["template"]


def container(name: str) -> Manifest:
    return pod(name)["spec"]["containers"][0]


def variables(name: str) -> dict[str, Any]:
    return {variable["name"]: variable.get("value") for variable in container(name)["env"]}


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("name", FILES)
def test_valid_by_the_published_schemas(name: str, release: str) -> None:
    for manifest in manifests(name):
        assert kubernetes_validate.validate(manifest, release, strict=True)


def test_the_validator_sees_mistakes() -> None:
    broken = find("cpu", "Deployment")
    broken["spec"]["template"]["spec"]["terminationGracePeriod"] = 40
    with pytest.raises(kubernetes_validate.ValidationError, match="terminationGracePeriod"):
        kubernetes_validate.validate(broken, RELEASES[1], strict=True)


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_the_settings_are_the_servers(name: str) -> None:
    given = {key.removeprefix(PREFIX).lower(): value for key, value in variables(name).items() if PREFIX in key}
    assert set(given) <= set(ServerSettings.model_fields)
    settings = ServerSettings.model_validate({key: value for key, value in given.items() if value is not None})
    assert settings.drain < settings.grace < pod(name)["spec"]["terminationGracePeriodSeconds"]
    mounts = {mount["mountPath"]: mount for mount in container(name)["volumeMounts"]}
    assert settings.api_keys_file is not None
    assert mounts[str(settings.api_keys_file.parent)]["readOnly"]


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_probes_ask_what_needs_no_key(name: str) -> None:
    ports = {port["name"] for port in container(name)["ports"]}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        request = container(name)[probe]["httpGet"]
        assert request["path"] in OPEN_PATHS
        assert request["port"] in ports


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_the_pod_may_do_nothing_that_it_need_not(name: str) -> None:
    security = pod(name)["spec"]["securityContext"]
    assert security["runAsNonRoot"]
    assert security["runAsUser"] == BENTO_USER
    assert container(name)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod(name)["spec"]["automountServiceAccountToken"] is False
    writable = [mount["mountPath"] for mount in container(name)["volumeMounts"] if not mount.get("readOnly")]
    assert [Path(variables(name)["BENTOML_HOME"]).is_relative_to(path) for path in writable] == [True]


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_everything_selects_the_pods(name: str) -> None:
    labels = pod(name)["metadata"]["labels"]
    assert find(name, "Deployment")["spec"]["selector"]["matchLabels"] == labels
    assert find("common", "Service")["spec"]["selector"] == labels
    assert find("common", "PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    assert find("common", "NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == labels
    scaler = find(name, "HorizontalPodAutoscaler")["spec"]
    assert scaler["scaleTargetRef"]["name"] == find(name, "Deployment")["metadata"]["name"]


def test_the_autoscaler_asks_for_the_adapters_metric() -> None:
    (rule,) = yaml.safe_load((DEPLOY / "prometheus" / "adapter.yaml").read_text())["rules"]
    for name in ("cpu", "gpu"):
        (metric,) = find(name, "HorizontalPodAutoscaler")["spec"]["metrics"]
        assert metric["pods"]["metric"]["name"] == rule["name"]["as"]


def test_cpu_and_gpu_differ_where_they_have_to_and_nowhere_else() -> None:
    assert container("cpu")["resources"]["limits"].get("nvidia.com/gpu") is None
    assert container("gpu")["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert (variables("cpu")["TAILSTACK_DEVICE"], variables("gpu")["TAILSTACK_DEVICE"]) == ("cpu", "cuda")
    # On a CPU larger batches are no faster.
    assert "TAILSTACK_MAX_BATCH" not in variables("cpu")
    assert int(variables("gpu")["TAILSTACK_MAX_BATCH"]) > ServerSettings().max_batch
    assert _shared("cpu") == _shared("gpu")


def _shared(name: str) -> list[Manifest]:
    deployment, scaler = manifests(name)
    spec = deployment["spec"]["template"]["spec"]
    spec.pop("tolerations", None)
    for key in ("image", "resources"):
        del spec["containers"][0][key]
    own = ("TAILSTACK_DEVICE", "TAILSTACK_MAX_BATCH")
    spec["containers"][0]["env"] = [v for v in spec["containers"][0]["env"] if v["name"] not in own]
    return [deployment, scaler]
