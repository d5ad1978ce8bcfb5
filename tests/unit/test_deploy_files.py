"""The files under deploy/, the Dockerfile and the compose file are what their own programs accept."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from service.metrics import Metrics
from service.settings import Settings, variable_of

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = sorted((DEPLOY / "kubernetes" / "base").glob("[!k]*.yaml"))
VARIABLES = {variable_of(name) for name in Settings.model_fields}


def run(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


@needs("promtool")
def test_prometheus_accepts_its_configuration_and_rules() -> None:
    run("promtool", "check", "config", "deploy/prometheus/prometheus.yml")


@needs("haproxy")
def test_haproxy_accepts_its_configuration() -> None:
    run("haproxy", "-c", "-f", "deploy/haproxy/haproxy.cfg")


def test_compose_file_follows_the_compose_specification() -> None:
    check = Path(sys.executable).with_name("check-jsonschema")
    run(str(check), "--builtin-schema", "vendor.compose-spec", "docker-compose.yml")


@pytest.mark.parametrize("path", KUBERNETES, ids=lambda path: path.name)
def test_kubernetes_accepts_the_manifest(path: Path) -> None:
    kubernetes_validate.validate(yaml.safe_load(path.read_text()), kubernetes_validate.latest_version(), strict=True)


@needs("kubectl")
def test_the_gpu_overlay_asks_for_a_gpu() -> None:
    done = subprocess.run(
        ["kubectl", "kustomize", "deploy/kubernetes/gpu"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    kinds = {document["kind"]: document for document in yaml.safe_load_all(done.stdout)}
    container = kinds["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert {"name": "ONESTEP_DEVICE", "value": "cuda"} in container["env"]


def test_kustomization_lists_every_manifest() -> None:
    listed = yaml.safe_load((DEPLOY / "kubernetes/base/kustomization.yaml").read_text())["resources"]
    assert sorted(listed) == [path.name for path in KUBERNETES]


def environments() -> dict[str, dict[str, Any]]:
    """The settings that each way of deployment gives, by the file's name."""
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    pod = yaml.safe_load((DEPLOY / "kubernetes/base/deployment.yaml").read_text())["spec"]["template"]["spec"]
    image = re.findall(r"(ONESTEP_[A-Z_]+)=(\S+)", (ROOT / "Dockerfile").read_text())
    return {
        "docker-compose.yml": compose["onestep"]["environment"],
        "docker-compose.yml, gpu": compose["onestep-gpu"]["environment"],
        "deployment.yaml": {item["name"]: item["value"] for item in pod["containers"][0]["env"]},
        "Dockerfile": dict(image),
    }


@pytest.mark.parametrize("name", environments())
def test_only_settings_that_exist_are_given(name: str) -> None:
    given = environments()[name]
    assert given
    assert set(given) - VARIABLES == set()


def test_grace_periods_are_longer_than_draining() -> None:
    """Nobody kills the service while it answers what it has accepted."""
    given = environments()
    pod = yaml.safe_load((DEPLOY / "kubernetes/base/deployment.yaml").read_text())["spec"]["template"]["spec"]
    drain = sum(float(given["deployment.yaml"][f"ONESTEP_DRAIN_{part}"]) for part in ("DELAY", "TIMEOUT"))
    assert pod["terminationGracePeriodSeconds"] > drain
    for service in yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"].values():
        assert seconds(service["stop_grace_period"]) > float(service["environment"]["ONESTEP_DRAIN_TIMEOUT"])


def test_kubernetes_runs_as_the_user_of_the_image() -> None:
    pod = yaml.safe_load((DEPLOY / "kubernetes/base/deployment.yaml").read_text())["spec"]["template"]["spec"]
    user = re.search(r"^USER (\d+):(\d+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert user is not None
    context = pod["securityContext"]
    assert (int(user[1]), int(user[2])) == (context["runAsUser"], context["runAsGroup"])


def test_balancers_wait_longer_than_the_service() -> None:
    """A balancer's timeout never ends a request before the service would."""
    limit = Settings().request_timeout
    nginx = (DEPLOY / "nginx/nginx.conf").read_text()
    haproxy = (DEPLOY / "haproxy/haproxy.cfg").read_text()
    waits = re.findall(r"proxy_read_timeout (\d+)s", nginx) + re.findall(r"timeout server (\d+)s", haproxy)
    assert len(waits) == 2
    assert min(map(int, waits)) > limit


def test_nginx_takes_the_same_largest_body() -> None:
    size = re.search(r"client_max_body_size (\d+)m;", (DEPLOY / "nginx/nginx.conf").read_text())
    assert size is not None
    assert int(size[1]) * 2**20 == Settings().max_body_bytes


def test_dashboard_asks_each_metric_by_labels_it_has() -> None:
    """`sum by (outcome)` and its like name labels of that very metric (or Prometheus' own)."""
    labels: dict[str, set[str]] = {}
    for collector in vars(Metrics()).values():
        if hasattr(collector, "_labelnames"):
            labels[collector._name] = set(collector._labelnames)
    wrong = []
    dashboard = json.loads((DEPLOY / "grafana/onestep.json").read_text())
    for target in (target for panel in dashboard["panels"] for target in panel["targets"]):
        names = re.findall(r"\b(onestep_[a-z0-9_]+?)(?:_total|_bucket|_sum|_count)?\{", target["expr"])
        grouped = {
            label.strip() for group in re.findall(r"by \(([^)]*)\)", target["expr"]) for label in group.split(",")
        }
        unknown = [name for name in names if name not in labels or grouped - labels[name] - {"instance", "le"}]
        wrong.extend(f"{name} in {target['expr']}" for name in unknown)
    assert wrong == []


def test_panels_do_not_overlap() -> None:
    dashboard = json.loads((DEPLOY / "grafana/onestep.json").read_text())
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    cells = [(p["x"] + i, p["y"] + j) for p in places for i in range(p["w"]) for j in range(p["h"])]
    assert len(cells) == len(set(cells))
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(places)
