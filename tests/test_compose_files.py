"""The files under compose/, as far as they can be judged without a container."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from grafana import queries
from postgres_fixtures import POSTGRES_IMAGE
from streamkm import metrics, settings
from streamkm.service.auth import issue
from streamkm.testing import KAFKA_IMAGE

COMPOSE = Path(__file__).parents[1] / "compose"
KUBERNETES = sorted((COMPOSE / "kubernetes").glob("*.yaml"))
OURS = re.compile(r"streamkm_[a-z_]+")


def names():
    """Every name that Prometheus sees of ours."""
    for m in metrics.CONTRACT:
        parts = ("_bucket", "_count", "_sum") if isinstance(m, metrics.HistogramSpec) else ("",)
        yield from (m.name + part for part in parts)


def labels_of(name):
    base = re.sub("_(bucket|count|sum)$", "", name)
    return {"le", "instance", "job"}.union(*(m.labels for m in metrics.CONTRACT if m.name in (name, base)))


def promql():
    rules = yaml.safe_load((COMPOSE / "prometheus" / "alerts.yml").read_text())["groups"][0]["rules"]
    yield from ((rule["alert"], rule["expr"]) for rule in rules)
    yield from ((q.title, q.promql) for q in queries(COMPOSE / "grafana" / "dashboards" / "streamkm.json"))


@pytest.mark.parametrize(("title", "query"), list(promql()))
def test_alerts_and_dashboard_ask_for_metrics_that_there_are(title, query):
    asked = set(OURS.findall(query))
    assert asked or "up{" in query
    assert asked <= set(names())
    by = {label.strip() for found in re.findall(r"by \(([^)]*)\)", query) for label in found.split(",")}
    matched = set(re.findall(r"([a-z_]+)=~?\"", query)) - {"job"}
    for name in asked:
        assert by | matched <= labels_of(name), title


def test_every_alert_has_a_test_and_says_what_to_do():
    rules = yaml.safe_load((COMPOSE / "prometheus" / "alerts.yml").read_text())["groups"][0]["rules"]
    tested = (COMPOSE / "prometheus" / "alerts_test.yml").read_text()
    for rule in rules:
        assert f'alertname="{rule["alert"]}"' in tested
        assert set(rule["annotations"]) == {"summary", "description"}
        assert rule["labels"]["severity"] in {"info", "warning", "critical"}


def documents():
    return [(f"{path.name}-{i}", d) for path in KUBERNETES for i, d in enumerate(yaml.safe_load_all(path.read_text()))]


@pytest.mark.parametrize(("where", "document"), [pair for pair in documents() if "kustom" not in pair[0]])
def test_kubernetes_takes_the_manifests(where, document):
    kubernetes_validate.validate(document, "1.34", strict=True)


def test_kustomize_names_every_manifest_and_settings_are_ours():
    told = {d["kind"]: d for _, d in documents()}
    assert set(told["Kustomization"]["resources"]) == {p.name for p in KUBERNETES} - {"kustomization.yaml"}
    known = {f"STREAMKM_{name.upper()}" for name in settings.TABLE}
    known |= {f"{name}_FILE" for name in known}
    assert set(told["ConfigMap"]["data"]) <= known
    pods = [d["spec"]["template"]["spec"] for _, d in documents() if d["kind"] == "Deployment"]
    for pod in pods:
        (container,) = pod["containers"]
        assert {e["name"] for e in container["env"]} <= known
        assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
        assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert pod["securityContext"]["runAsNonRoot"]


def test_the_compose_file_is_safe_bounded_and_runs_what_the_tests_ran():
    compose = yaml.safe_load((COMPOSE / "docker-compose.yml").read_text())
    known = {f"STREAMKM_{name.upper()}" for name in settings.TABLE} | {"STREAMKM_HEALTH"}
    for name, service in compose["services"].items():
        assert "mem_limit" in service, name
        assert service["restart"] in {"unless-stopped", "no"}, name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
        if service["image"].startswith("${STREAMKM_"):
            assert service["read_only"], name
            assert service["cap_drop"] == ["ALL"], name
            assert {variable.removesuffix("_FILE") for variable in service.get("environment", ())} <= known, name
    assert KAFKA_IMAGE in compose["services"]["kafka"]["image"]
    assert POSTGRES_IMAGE in compose["services"]["postgres"]["image"]
    assert {n for n, s in compose["services"].items() if "profiles" in s} == {"prometheus", "grafana", "reader"}


def test_each_secret_is_with_those_who_need_it_and_none_opens_more_than_that():
    services = yaml.safe_load((COMPOSE / "docker-compose.yml").read_text())["services"]
    has = {
        name: {volume.split(":")[0] for volume in service.get("volumes", ())}
        & {"token", "reader", "database-secret", "grafana-secret"}
        for name, service in services.items()
    }
    consumer = {"reader", "database-secret"}
    assert {name: secrets for name, secrets in has.items() if secrets} == {
        "secrets": {"token", "reader", "database-secret", "grafana-secret"},
        "postgres": {"database-secret"},
        "live": consumer,
        "standby": consumer,
        "reader": consumer,
        "service": {"token", "database-secret"},
        "prometheus": {"reader"},
        "grafana": {"grafana-secret"},
    }
    for name, service in services.items():
        named = re.findall(r"/run/(\w+)/", str(service.get("environment", "")) + str(service.get("command", "")))
        mounted = {volume.split(":")[1].removeprefix("/run/") for volume in service.get("volumes", ())}
        assert set(named) <= mounted, name
        assert name == "secrets" or all(v.endswith(":ro") for v in service.get("volumes", ()) if ":/run/" in v), name
    prometheus = (COMPOSE / "prometheus" / "prometheus.yml").read_text()
    assert set(re.findall(r"/run/\S*?(?=})", prometheus)) == {"/run/reader/token"}
    pods = {d["metadata"]["name"]: str(d["spec"]["template"]) for _, d in documents() if d["kind"] == "Deployment"}
    assert "streamkm-token" not in pods["consumer"]
    assert "streamkm-reader" not in pods["service"]


def test_secrets_are_made_once_each_another(tmp_path):
    folders = [tmp_path / name for name in ("database", "token", "reader", "grafana")]
    for folder in folders:
        folder.mkdir()
    made = []
    for _ in range(2):
        subprocess.run([sys.executable, COMPOSE / "make_secrets.py", *folders], check=True, capture_output=True)
        made.append({path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()})
    assert made[0] == made[1]
    names = {str(path.relative_to(tmp_path)) for path in made[0]}
    assert names == {"database/password", "database/url", "token/token", "reader/token", "grafana/password"}
    assert len(set(made[0].values())) == 5
    assert issue("prometheus", "read", (), 0.0, made[0][tmp_path / "reader" / "token"])[1].right == "read"
