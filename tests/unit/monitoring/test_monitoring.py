"""Alerts and the dashboard in contrib ask for what /metrics has, and Prometheus takes them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from pushservice.monitoring.families import Family, Kind, all_families

CONTRIB = Path(__file__).parents[3] / "contrib"
PROMETHEUS = CONTRIB / "prometheus"
DASHBOARD = json.loads((CONTRIB / "grafana" / "quotepush.json").read_text("utf-8"))
ALERTS = [
    rule
    for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text("utf-8"))["groups"]
    for rule in group["rules"]
]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]

#: Labels that Prometheus adds to all it scrapes.
SCRAPED = {"job", "instance"}
FUNCTIONS = {"rate", "increase", "sum", "max", "min", "histogram_quantile", "label_values"}
WORDS = {"by", "and", "on", "or"}


def series() -> dict[str, dict[str, list[str]]]:
    """Every name that can be queried, with its labels and the values that are known of them."""
    found: dict[str, dict[str, list[str]]] = {"up": {}}
    for family in all_families():
        found |= dict.fromkeys(names_of(family), family.labels)
        if family.kind is Kind.HISTOGRAM:
            found[f"{family.name}_bucket"] = family.labels | {"le": []}
    return found


def names_of(family: Family) -> list[str]:
    if family.kind is Kind.HISTOGRAM:
        return [family.name + suffix for suffix in ("_bucket", "_sum", "_count")]
    return [family.shown_name]


SERIES = series()


def expressions() -> Iterator[tuple[str, str]]:
    """Every PromQL expression with where it is."""
    for rule in ALERTS:
        yield rule["alert"], rule["expr"]
    for panel in PANELS:
        for target in panel["targets"]:
            yield f"panel {panel['title']}", target["expr"]
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield f"variable {variable['name']}", variable["definition"]


each_expression = pytest.mark.parametrize("expression", [text for _, text in expressions()])


def faults_of(expression: str) -> list[str]:
    """What an expression asks for that there is not."""
    faults = []
    rest = re.sub(r"\[[^]]*\]", "", expression)
    asked: set[str] = set()
    for name, matchers in re.findall(r"([a-z_:]+)\s*\{([^}]*)\}", rest):
        asked.add(name)
        for label, value in re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"', matchers):
            if name not in SERIES:
                continue
            values = SERIES[name].get(label)
            if values is None and label not in SCRAPED:
                faults.append(f"{name} has no label {label}")
            if values and value not in values:
                faults.append(f"{label} of {name} is never {value}")
    rest = re.sub(r"\{[^}]*\}", "", rest)
    groups = re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", rest)
    rest = re.sub(r"\b(by|on)\s*\([^)]*\)", "", rest)
    if rest.startswith("label_values("):
        name, label = rest.removeprefix("label_values(").removesuffix(")").split(",")
        asked, groups, rest = {name}, [label], ""
    asked |= set(re.findall(r"[A-Za-z_:][A-Za-z0-9_:]*", rest)) - FUNCTIONS - WORDS
    faults += [f"there is no {name}" for name in sorted(asked - set(SERIES))]
    there = SCRAPED.union(*(SERIES.get(name, {}) for name in asked))
    for label in re.findall(r"\w+", ",".join(groups)):
        if label not in there:
            faults.append(f"none of {sorted(asked)} has a label {label}")
    return faults


@each_expression
def test_an_expression_asks_for_metrics_and_labels_that_there_are(expression):
    assert faults_of(expression) == []


@pytest.mark.parametrize(
    ("expression", "fault"),
    [
        ("sum(rate(quotepush_quotes_total[5m]))", "there is no quotepush_quotes_total"),
        ('quotepush_clients{state="slow"}', "state of quotepush_clients is never slow"),
        ('quotepush_clients{kind="behind"}', "quotepush_clients has no label kind"),
        (
            "sum by (le, reason) (quotepush_clients)",
            "none of ['quotepush_clients'] has a label reason",
        ),
        ("quotepush_turn_quotes", "there is no quotepush_turn_quotes"),
        ("rate(quotepush_merged[5m])", "there is no quotepush_merged"),
    ],
)
def test_what_is_not_there_is_found(expression, fault):
    assert fault in faults_of(expression)


# -- alerts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_it_is_how_bad_and_since_when(rule):
    assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
    assert re.fullmatch(r"\d+[smh]", rule["for"])
    assert set(rule["labels"]) == {"severity"}
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(rule["annotations"]) == {"summary", "description"}
    assert rule["annotations"]["description"].endswith(".")
    assert "$labels.instance" in rule["annotations"]["summary"]


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_s_words_use_labels_that_its_expression_leaves(rule):
    words = " ".join(rule["annotations"].values())
    used = set(re.findall(r"\$labels\.(\w+)", words)) - SCRAPED
    kept = re.findall(r"\bby \(([^)]*)\)", rule["expr"])
    first = SERIES[re.findall(r"quotepush_\w+|\bup\b", rule["expr"])[0]]
    own = set(first) if not rule["expr"].startswith(("sum", "max", "histogram")) else set()
    assert used <= own | set(re.findall(r"\w+", " ".join(kept)))


def test_what_keeps_quotes_from_clients_is_critical():
    critical = {rule["alert"] for rule in ALERTS if rule["labels"]["severity"] == "critical"}
    assert critical == {
        "QuotepushDoesNotAnswer",
        "QuotepushNotReady",
        "QuotepushNoWorkerServes",
        "QuotepushFeedDown",
        "QuotepushCertificateEnds",
    }


def test_every_alert_is_tested_to_fire_and_to_stay_quiet():
    tests = yaml.safe_load((PROMETHEUS / "alerts_test.yml").read_text("utf-8"))["tests"]
    outcomes = {
        (case["alertname"], bool(case["exp_alerts"]))
        for test in tests
        for case in test["alert_rule_test"]
    }
    assert outcomes == {(rule["alert"], fires) for rule in ALERTS for fires in (True, False)}


def promtool(*arguments: str, directory: Path = PROMETHEUS) -> str:
    path = shutil.which("promtool")
    if path is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    outcome = subprocess.run(
        [path, *arguments],
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stdout
    return outcome.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "rules", "alerts.yml"),
        ("test", "rules", "alerts_test.yml"),
        ("check", "config", "prometheus.yml"),
    ],
    ids=" ".join,
)
def test_promtool_is_content(arguments):
    assert "SUCCESS" in promtool(*arguments)


# -- the dashboard ---------------------------------------------------------------------------------


def test_prometheus_understands_the_expressions_of_the_dashboard(tmp_path):
    rules = [
        {
            "record": f"panel:{number}",
            "expr": target["expr"].replace("$__rate_interval", "5m").replace("$instance", ".*"),
        }
        for number, target in enumerate(t for panel in PANELS for t in panel["targets"])
    ]
    groups = {"groups": [{"name": "dashboard", "rules": rules}]}
    (tmp_path / "rules.json").write_text(json.dumps(groups))
    assert f"{len(rules)} rules found" in promtool(
        "check", "rules", "rules.json", directory=tmp_path
    )


def test_the_dashboard_can_be_imported_anywhere():
    assert DASHBOARD["id"] is None
    assert DASHBOARD["schemaVersion"] >= 39
    source, instance = DASHBOARD["templating"]["list"]
    assert (source["type"], source["query"]) == ("datasource", "prometheus")
    assert instance["datasource"]["uid"] == "${datasource}"
    for panel in PANELS:
        for asking in [panel, *panel["targets"]]:
            assert asking["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_every_panel_says_what_it_shows_and_has_its_place():
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in PANELS:
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"].get("unit") or panel["type"] == "heatmap"
        for target in panel["targets"]:
            assert 'instance=~"$instance"' in target["expr"]
    for one, other in combinations((panel["gridPos"] for panel in DASHBOARD["panels"]), 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)
        assert one["x"] + one["w"] <= 24


def test_the_dashboard_shows_nearly_all_there_is():
    shown = " ".join(target["expr"] for panel in PANELS for target in panel["targets"])
    missing = {
        family.name
        for family in all_families()
        if not any(re.search(rf"\b{name}\b", shown) for name in names_of(family))
    }
    assert missing <= {
        "quotepush_build",
        "quotepush_commands",
        "quotepush_compressed",
        "quotepush_connections",
        "quotepush_demo_quotes",
        "quotepush_gc_collections",
        "quotepush_page_requests",
        "quotepush_process_start_time_seconds",
        "quotepush_snapshots_learnt",
    }


def legends() -> list[tuple[str, str]]:
    found: list[Any] = [
        (target["expr"], target["legendFormat"]) for panel in PANELS for target in panel["targets"]
    ]
    return [(expression, legend) for expression, legend in found if "{{" in legend]


@pytest.mark.parametrize(("expression", "legend"), legends())
def test_a_legend_names_labels_that_its_expression_leaves(expression, legend):
    grouped = re.findall(r"\bby \(([^)]*)\)", expression)
    name = re.findall(r"quotepush_\w+", expression)[0]
    kept = set(re.findall(r"\w+", grouped[0])) if grouped else set(SERIES[name]) | SCRAPED
    assert set(re.findall(r"\{\{(\w+)\}\}", legend)) <= kept
