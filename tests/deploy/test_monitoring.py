"""Alert rules, dashboard and the autoscaler's metric: PromQL that parses, and asks for what `/metrics` shows."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.serving.conftest import ADMIN_KEY, encoded, running, wait_for, web

DEPLOY = Path(__file__).parents[2] / "deploy"
SCRAPED = {"job", "instance", "namespace", "pod"}
"""Labels that Prometheus adds; `le` comes with histograms."""
# What Grafana and the adapter put in before Prometheus sees a query.
FILLED = {"$__rate_interval": "5m", "$job": ".*", "<<.GroupBy>>": "pod", "<<.LabelMatchers>>": 'namespace="n"'}


@dataclass
class Asked:
    """What one query asks for."""

    metrics: set[str] = field(default_factory=set)
    labels: set[str] = field(default_factory=set)


@pytest.fixture(scope="module")
def shown(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Each series of `/metrics` with its labels, of a server that has answered, refused and reloaded."""
    folder = tmp_path_factory.mktemp("monitored")
    with running(tiny_model, folder, TAILSTACK_MAX_QUEUE="1", TAILSTACK_ADMIN_KEYS=ADMIN_KEY) as server:
        web.post(f"{server.address}/model/reload", headers={"x-api-key": ADMIN_KEY}).raise_for_status()
        statuses: set[int] = set()
        with ThreadPoolExecutor(8) as threads:

            def has_answered_and_refused() -> bool:
                asking = [threads.submit(web.post, f"{server.address}/classify", content=encoded()) for _ in range(8)]
                statuses.update(answer.result().status_code for answer in asking)
                return statuses >= {200, 503}

            wait_for(has_answered_and_refused)
        text = web.get(f"{server.address}/metrics").text
    families = text_string_to_metric_families(text)
    found: dict[str, set[str]] = {}
    for sample in (sample for family in families for sample in family.samples):
        found.setdefault(sample.name, set()).update(sample.labels)
    return found


def alerts() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())["groups"]
    return group["rules"]


def panels() -> list[dict[str, Any]]:
    dashboard = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
    return dashboard["panels"]


def queries() -> Iterator[tuple[str, str]]:
    for rule in alerts():
        yield rule["alert"], rule["expr"]
    for panel in panels():
        for target in panel.get("targets", []):
            yield f"{panel['title']}, {target['refId']}", target["expr"]
    (rule,) = yaml.safe_load((DEPLOY / "prometheus" / "adapter.yaml").read_text())["rules"]
    yield "adapter", rule["metricsQuery"]
    yield "adapter's series", rule["seriesQuery"]


def ask(query: str) -> Asked:
    """Parse a query."""
    for name, value in FILLED.items():
        query = query.replace(name, value)
    asked = Asked()

    def visit(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            asked.metrics.add(node.name)
            asked.labels |= {matcher.name for matcher in node.matchers.matchers}
        elif isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            asked.labels |= set(node.modifier.labels)

    promql_parser.walk(promql_parser.parse(query), visit)
    return asked


@pytest.mark.parametrize(("name", "query"), [pytest.param(*pair, id=pair[0]) for pair in queries()])
def test_a_query_asks_for_what_the_server_shows(name: str, query: str, shown: dict[str, set[str]]) -> None:
    asked = ask(query)
    assert asked.metrics
    assert asked.metrics <= set(shown), name
    assert asked.labels <= SCRAPED.union(*(shown[metric] for metric in asked.metrics)), name


def test_every_figure_of_the_server_is_on_the_dashboard(shown: dict[str, set[str]]) -> None:
    on_dashboard = set().union(
        *(ask(target["expr"]).metrics for panel in panels() for target in panel.get("targets", []))
    )
    series = re.compile("_(?:bucket|sum|count|created)$")
    families = {
        series.sub("", name) for name in shown if name.startswith("tailstack_") and not name.endswith("_created")
    }
    assert families == {series.sub("", name) for name in on_dashboard}


def test_alerts_say_what_to_do() -> None:
    names = [rule["alert"] for rule in alerts()]
    assert len(set(names)) == len(names)
    for rule in alerts():
        assert rule["labels"]["severity"] in {"page", "warn"}
        assert set(rule["annotations"]) == {"summary", "description"}
        assert promql_parser.parse_duration(rule.get("for", "1m")).total_seconds() > 0


def test_the_panels_fill_rows_without_overlap() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        own = {(x + place["x"], y + place["y"]) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & own, panel["title"]
        assert max(x for x, _ in own) < 24
        cells |= own
    ids = [panel["id"] for panel in panels()]
    assert len(set(ids)) == len(ids)
    assert all(panel["description"] and panel["targets"] for panel in panels() if panel["type"] != "row")
