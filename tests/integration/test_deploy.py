"""What `deploy/` ships: alerts that fire when they should, names that exist, files that fit together; and the lock."""

from __future__ import annotations

import base64
import configparser
import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from prometheus_client import CollectorRegistry

from service.config import Config, load_config
from service.doctor import examine
from service.http import build_app
from service.metrics import Metrics
from tests.servers import Broker
from tests.unit.test_http import Daemon

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
NAME = re.compile(r"\bheadwater_[a-z_0-9]+\b")
EXAMPLES = [DEPLOY / "examples" / "headwater.toml", DEPLOY / "kubernetes" / "headwater.toml"]


def parsed(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))


def series_names() -> set[str]:
    """Every series that a daemon can expose, and labels that the rules print."""
    names = set()
    for metric in Metrics(CollectorRegistry()).described:
        suffixes = ("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",)
        names |= {metric.name + suffix for suffix in suffixes}
    return names


def alerts() -> dict[str, dict[str, Any]]:
    groups = parsed("prometheus/rules.yml")["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}


# Prometheus


@pytest.mark.slow
def test_the_rules_are_sound_and_fire_when_they_should(promtool: str) -> None:
    for command in (
        ["check", "config", "prometheus.yml"],
        ["check", "rules", "--lint=all", "--lint-fatal", "rules.yml"],
        ["test", "rules", "rules_test.yml"],
    ):
        done = subprocess.run(
            [promtool, *command], cwd=DEPLOY / "prometheus", capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_seen_firing_in_the_rules_tests() -> None:
    tests = parsed("prometheus/rules_test.yml")["tests"]
    fired = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case.get("exp_alerts")}
    assert fired == set(alerts())


def test_every_alert_says_what_is_wrong_and_what_to_do() -> None:
    headings = set(re.findall(r"^### (\w+)$", (DEPLOY / "README.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert headings == set(alerts())
    for name, rule in alerts().items():
        assert rule["labels"]["severity"] in ("critical", "warning", "info"), name
        assert rule["annotations"]["summary"], name


def test_rules_speak_only_of_metrics_that_exist() -> None:
    rules = [rule for group in parsed("prometheus/rules.yml")["groups"] for rule in group["rules"]]
    recorded = {rule["record"] for rule in rules if "record" in rule}
    for rule in rules:
        expression = rule["expr"]
        for name in recorded:
            expression = expression.replace(name, "")
        assert set(NAME.findall(expression)) <= series_names(), rule


def test_the_job_that_rules_go_by_is_the_one_that_scrapes() -> None:
    jobs = {job["job_name"] for job in parsed("prometheus/prometheus.yml")["scrape_configs"]}
    named = set(re.findall(r'job="([^"]+)"', (DEPLOY / "prometheus" / "rules.yml").read_text(encoding="utf-8")))
    assert named <= jobs


# Grafana


def dashboard_expressions(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from (value for key, value in node.items() if key in ("expr", "query") and isinstance(value, str))
        for value in node.values():
            yield from dashboard_expressions(value)
    elif isinstance(node, list):
        for value in node:
            yield from dashboard_expressions(value)


def test_the_dashboard_shows_only_metrics_that_exist() -> None:
    dashboard = json.loads((DEPLOY / "grafana" / "dashboards" / "headwater.json").read_text(encoding="utf-8"))
    shown = {name for expression in dashboard_expressions(dashboard) for name in NAME.findall(expression)}
    assert shown <= series_names()
    assert len(shown) > 20, "the names were not found at all"


def test_the_dashboard_leaves_no_gap_and_no_overlap() -> None:
    dashboard = json.loads((DEPLOY / "grafana" / "dashboards" / "headwater.json").read_text(encoding="utf-8"))
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    rows = max(y for _, y in cells) + 1
    assert len(cells) == len(set(cells)) == 24 * rows


@pytest.mark.servers
def test_a_real_prometheus_understands_every_query_of_the_dashboard(promtool: str, tmp_path: Path) -> None:
    dashboard = json.loads((DEPLOY / "grafana" / "dashboards" / "headwater.json").read_text(encoding="utf-8"))
    queries = [q for q in dashboard_expressions(dashboard) if NAME.search(q) and not q.startswith("label_values")]
    rules = [
        {"record": f"query_{number}", "expr": query.replace("$instance", ".*").replace("$__interval", "1m")}
        for number, query in enumerate(queries)
    ]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run([promtool, "check", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# Configurations


@pytest.mark.servers
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.parent.name)
def test_doctor_accepts_the_example_configurations(
    path: Path, kafka: Broker, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = {
        "STATE_DIR": str(tmp_path / "state"),
        "KAFKA__BOOTSTRAP_SERVERS": kafka.address,
        "REDIS__URL": redis_url,
        "HTTP__PORT": "0",
    }
    for key, value in here.items():
        monkeypatch.setenv(f"HEADWATER__{key}", value)
    named = load_config(path).kafka
    compacted = [named.items_topic, named.users_topic]
    kafka.producer.ensure_topics(
        [named.interactions_topic, *compacted, named.dead_letter_topic], partitions=1, compacted=compacted
    )
    assert [check for check in examine(path) if check.outcome == "FAIL"] == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.parent.name)
def test_example_configurations_load(path: Path) -> None:
    assert load_config(path).state_dir.is_absolute()


def test_the_keys_that_the_example_comments_out_exist(tmp_path: Path) -> None:
    """Commented settings rot unseen: here each stands in its table and must load."""
    lines = EXAMPLES[0].read_text(encoding="utf-8").splitlines()
    uncommented = [re.sub(r"^#   (?=\w+ = )", "", line) for line in lines]
    assert uncommented != lines
    path = tmp_path / "headwater.toml"
    path.write_text("\n".join(uncommented), encoding="utf-8")
    assert load_config(path).kafka.security_protocol == "SASL_SSL"


# Compose, image, unit, Kubernetes: no engine here, so what must agree is compared


def environment_keys(config: type[Config]) -> set[str]:
    keys = set()
    for name, info in config.model_fields.items():
        fields = getattr(info.annotation, "model_fields", None) or getattr(
            info.annotation, "__dataclass_fields__", None
        )
        keys |= {f"HEADWATER__{name}__{key}".upper() for key in fields} if fields else {f"HEADWATER__{name}".upper()}
    return keys


def test_compose_mounts_files_that_exist_and_sets_keys_that_exist() -> None:
    compose = parsed("compose.yaml")
    for name, service in compose["services"].items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in compose["volumes"], volume
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name} listens beyond this host: {port}"
        assert set(service.get("depends_on", [])) <= set(compose["services"])
    set_there = compose["services"]["headwater"]["environment"]
    assert set(set_there) <= environment_keys(Config)


def test_compose_names_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    services = parsed("compose.yaml")["services"]
    for key, value in services["headwater"]["environment"].items():
        monkeypatch.setenv(key, value)
    config = load_config(EXAMPLES[0])
    # Brokers and Redis are services of this file, on the ports they listen on.
    host, port = config.kafka.bootstrap_servers.split(":")
    assert host in services
    assert f"INSIDE://{host}:{port}" in services[host]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    assert re.fullmatch(r"redis://(\w+):6379/0", config.redis.url)
    assert config.http.host == "0.0.0.0"
    assert services["headwater"]["ports"] == [f"127.0.0.1:{config.http.port}:{config.http.port}"]
    assert "noeviction" in services["redis"]["command"]
    # Every topic of the configuration is made, compacted where it must be.
    made = dict(re.findall(r"^make (\S+) (.*)$", services["topics"]["command"][0], re.MULTILINE))
    kafka = config.kafka
    assert set(made) == {
        kafka.interactions_topic,
        kafka.items_topic,
        kafka.users_topic,
        kafka.dead_letter_topic,
    }
    compacted = {topic for topic, options in made.items() if "cleanup.policy=compact" in options}
    assert compacted == {kafka.items_topic, kafka.users_topic}
    # What Prometheus scrapes and Grafana asks.
    (job,) = parsed("prometheus/prometheus.yml")["scrape_configs"]
    assert job["static_configs"][0]["targets"] == [f"headwater:{config.http.port}"]
    source = parsed("grafana/provisioning/datasources/prometheus.yaml")["datasources"][0]
    assert source["url"] == "http://prometheus:9090"


def test_compose_gives_kafka_an_identity_that_kafka_accepts() -> None:
    identity = parsed("compose.yaml")["services"]["kafka"]["environment"]["CLUSTER_ID"]
    assert len(base64.urlsafe_b64decode(identity + "==")) == 16


def test_the_image_holds_the_packages_and_nothing_secret_and_runs_as_nobody_special() -> None:
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    copied = {word for line in re.findall(r"^COPY (?!--)(.*) \S+$", text, re.MULTILINE) for word in line.split()}
    allowed = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert copied == {line.removeprefix("!") for line in allowed if line.startswith("!")}
    assert all((ROOT / name).exists() for name in copied)
    assert re.search(r"^USER [1-9]\d*$", text, re.MULTILINE)
    assert "/healthz" in text


def routes() -> set[str]:
    """The paths that the daemon answers."""
    served: Any = build_app(Daemon(), Metrics(CollectorRegistry()), namespace="n", token_file=None)
    return {route.path for route in served.app.routes}


def test_kubernetes_probes_ports_and_mounts_agree() -> None:
    stateful, service = parsed("kubernetes/statefulset.yaml")["spec"], parsed("kubernetes/service.yaml")["spec"]
    config = load_config(EXAMPLES[1])
    (container,) = stateful["template"]["spec"]["containers"]
    assert stateful["replicas"] == 1
    assert [port["containerPort"] for port in container["ports"]] == [config.http.port]
    assert service["ports"][0]["targetPort"] == container["ports"][0]["name"]
    assert config.http.host == "0.0.0.0"
    probes = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")}
    assert probes == {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"}
    assert set(probes.values()) <= routes()
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    volumes = {volume["name"] for volume in stateful["template"]["spec"]["volumes"]}
    claims = {claim["metadata"]["name"] for claim in stateful["volumeClaimTemplates"]}
    assert set(mounts) == volumes | claims
    assert config.state_dir.is_relative_to(mounts["state"])
    # As in the image.
    image = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    assert f"USER {stateful['template']['spec']['securityContext']['runAsUser']}\n" in image
    assert f"HEADWATER_CONFIG={mounts['config']}/headwater.toml" in image


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl on PATH")
def test_kustomize_builds_it() -> None:
    done = subprocess.run(
        ["kubectl", "kustomize", str(DEPLOY / "kubernetes")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    built = {one["kind"]: one for one in yaml.safe_load_all(done.stdout)}
    assert set(built) == {"ConfigMap", "Service", "StatefulSet"}
    volumes = built["StatefulSet"]["spec"]["template"]["spec"]["volumes"]
    assert {"name": built["ConfigMap"]["metadata"]["name"]} in [v.get("configMap") for v in volumes]
    labels = built["StatefulSet"]["spec"]["template"]["metadata"]["labels"].items()
    assert built["Service"]["spec"]["selector"].items() <= labels


def test_the_unit_runs_a_verb_that_exists_and_is_confined() -> None:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(DEPLOY / "systemd" / "headwater.service")
    service = unit["Service"]
    assert service["ExecStart"].split()[1:3] == ["run", "--config"]
    confined = {"NoNewPrivileges", "ProtectHome", "PrivateTmp", "DynamicUser"}
    assert {key for key in confined if service[key] == "yes"} == confined
    assert service["ProtectSystem"] == "strict"


# The lock


def closure(*, everywhere: bool) -> dict[str, str]:
    """Every distribution that Headwater and its extras need here, with its version and without its local part.

    With `everywhere`, without what only some platforms need, such as torch's CUDA libraries: that is left to them.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    # `lightfm` is pinned where it is named, and nobody has to have a compiler for it.
    extras = [texts for extra, texts in project["optional-dependencies"].items() if extra != "lightfm"]
    waiting = [Requirement(text) for texts in (project["dependencies"], *extras) for text in texts]
    found: dict[str, str] = {}
    done: set[tuple[str, str]] = set()
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if name == "headwater":
            continue
        found[name] = Version(distribution(name).version).public
        # An extra of a requirement adds the lines that its marker lets in, beside those that always hold.
        for extra in {"", *wanted.extras} - {extra for of, extra in done if of == name}:
            done.add((name, extra))
            more = [Requirement(text) for text in distribution(name).requires or []]
            here = [one for one in more if one.marker is None or one.marker.evaluate({"extra": extra})]
            waiting += [one for one in here if not (everywhere and "platform" in str(one.marker))]
    return found


def test_the_lock_pins_exactly_what_is_installed() -> None:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    locked = {canonicalize_name(name): version for name, version in pins.items()}
    assert "+" not in "".join(locked.values()), "a local version would tie the lock to one machine's wheel"
    assert closure(everywhere=True).items() <= locked.items(), "`make lock` brings requirements.lock up to date"
    assert not set(locked) - set(closure(everywhere=False)), "pinned but needed by nothing"
