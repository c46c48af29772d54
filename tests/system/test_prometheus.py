"""A real Prometheus, by the example in contrib, scrapes a real daemon that has clients."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from free_ports import free_port
from system_clients import Puppet
from system_harness import Publisher, StartDaemon, poll

from pushservice.protocol.deflate import EACH

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "contrib" / "prometheus"
DASHBOARD = ROOT / "contrib" / "grafana" / "quotepush.json"

#: What only some daemons have: delays, and certificates.
SOMETIMES = ("quotepush_tape_", "quotepush_certificate_")
DEADLINE = 60.0


class Prometheus:
    """A server of our own."""

    def __init__(self, directory: Path, target: str) -> None:
        self._port = free_port()
        example = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text("utf-8"))
        example["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        (job,) = example["scrape_configs"]
        job["static_configs"] = [{"targets": [target]}]
        shutil.copy(PROMETHEUS / "alerts.yml", directory)
        (directory / "prometheus.yml").write_text(yaml.safe_dump(example))
        self._log = (directory / "log").open("wb")
        self.process = subprocess.Popen(
            [
                program(),
                f"--config.file={directory / 'prometheus.yml'}",
                f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address=127.0.0.1:{self._port}",
            ],
            cwd=directory,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def ask(self, path: str, **query: str) -> Any:
        """The data of an answer; None while it does not answer."""
        url = f"http://127.0.0.1:{self._port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=20) as answer:
                return json.load(answer)["data"]
        except ConnectionRefusedError:
            return None
        except urllib.error.HTTPError as error:
            # 503 while it starts; else what is wrong with a query.
            if error.code == 503:
                return None
            raise AssertionError(f"{query}: {error.read().decode()}") from error
        except urllib.error.URLError:
            return None

    def values(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression has now, but for those that are no number."""
        data = self.ask("query", query=expression)
        found = [] if data is None else data["result"]
        return [each for each in found if each["value"][1] != "NaN"]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        self._log.close()


def program() -> str:
    path = shutil.which("prometheus")
    if path is None:
        pytest.skip("prometheus is not installed (Debian: apt-get install prometheus)")
    return path


@pytest.fixture
def scraping(daemon: StartDaemon, publisher: Publisher, tmp_path: Path) -> Iterator[Prometheus]:
    """A Prometheus that has scraped a daemon whose clients got quotes that say when they were."""
    program()
    admin = f"127.0.0.1:{free_port()}"
    served = daemon("--channels", "prom.*", "--plain", "--admin", admin)
    directory = tmp_path / "prometheus"
    directory.mkdir()
    prometheus = Prometheus(directory, admin)
    try:
        with ExitStack() as stack:
            # So many that some of what they share is compressed.
            for _ in range(EACH):
                client = stack.enter_context(Puppet(served))
                client.upgrade("Sec-WebSocket-Extensions: permessage-deflate")
                client.subscribe("A")
            poll(lambda: prometheus.values("quotepush_ready == 1"), "a scrape", DEADLINE)

            def flows() -> bool:
                quote = json.dumps({"ts": int(time.time() * 1000)})
                publisher.publish([("prom.A", quote)])
                return bool(prometheus.values("rate(quotepush_events_sent_total[1m]) > 0"))

            poll(flows, "quotes that were counted twice", DEADLINE)
            yield prometheus
    finally:
        prometheus.stop()


def test_the_alerts_are_loaded_and_quiet_and_every_panel_has_something_to_show(scraping):
    (group,) = scraping.ask("rules")["groups"]
    assert len(group["rules"]) > 15
    poll(
        lambda: all(rule["health"] == "ok" for rule in scraping.ask("rules")["groups"][0]["rules"]),
        "all alerts to be evaluated",
        DEADLINE,
    )
    assert scraping.values('ALERTS{severity="critical"}') == []
    empty = []
    for panel in json.loads(DASHBOARD.read_text("utf-8"))["panels"]:
        for target in panel.get("targets", []):
            expression = target["expr"].replace("$__rate_interval", "1m")
            expression = expression.replace("$instance", ".*")
            if not scraping.values(expression) and not any(map(expression.count, SOMETIMES)):
                empty.append(expression)
    assert empty == []
