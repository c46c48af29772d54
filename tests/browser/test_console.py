"""The operator's page in a real Chromium, against real daemons with all that befalls them."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from free_ports import free_port
from playwright.sync_api import BrowserContext, Page, Route, expect
from redis_process import RedisServer, start_redis
from system_clients import Puppet
from system_harness import Daemon

TIMEOUT_MS = 30_000
OPTIONS = ("--interface", "127.0.0.1", "--demo", "--demo-rate", "400")
#: What the kernel takes for a client that does not read, there and here.
UNREAD = 4096
#: Markup without the characters that no symbol has; run, it would leave a mark.
HOSTILE = "<img/src=x/onerror=window.ran=1>"
NOTHING = "–"


class Operated:
    """A daemon, its Redis, and what its admin port says."""

    def __init__(self, daemon: Daemon, redis: RedisServer, admin: int) -> None:
        self.daemon = daemon
        self.redis = redis
        self.url = f"http://127.0.0.1:{admin}/"

    def ask(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=20) as answer:
            return json.load(answer)

    def workers(self) -> list[dict[str, Any]]:
        return self.ask("status")["workers"]


@contextmanager
def operated(directory: Path, redis: RedisServer, admin: int, *more: str) -> Iterator[Operated]:
    """A daemon with the simulated market and an admin port."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("twistd")), "-n", "--pidfile=", "quotepush"]
    command += [*OPTIONS, "--port", str(port), "--redis", redis.url]
    command += ["--admin", f"127.0.0.1:{admin}", *more]
    daemon = Daemon(command, port=port, directory=directory, certs=directory / "certs")
    try:
        daemon.wait_for("is served")
        daemon.wait_for("connected for the simulated market")
        yield Operated(daemon, redis, admin)
    finally:
        daemon.stop()
    assert "Traceback" not in daemon.output()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operated]:
    """A daemon that no test harms, with two workers."""
    directory = tmp_path_factory.mktemp("operated")
    redis = start_redis(directory)
    with operated(directory, redis, free_port(), "--workers", "2") as daemon:
        yield daemon
    redis.stop()


Start = Callable[..., AbstractContextManager[Operated]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """start(*options) is entered for a daemon of the test's own, on one Redis and admin port."""
    redis = start_redis(tmp_path)
    admin = free_port()
    yield lambda *more: operated(tmp_path, redis, admin, *more)
    redis.stop()


@contextmanager
def watching(place: Operated, count: int, **more: Any) -> Iterator[list[Puppet]]:
    """Clients that watch AAPL and MSFT and read nothing."""
    with ExitStack() as stack:
        clients = []
        for _ in range(count):
            clients.append(stack.enter_context(Puppet(place.daemon, **more)))
            clients[-1].upgrade()
            clients[-1].subscribe("AAPL", "MSFT")
        yield clients


def fact(page: Page, name: str) -> Any:
    """The value of a tile."""
    return page.locator(f'[data-fact="{name}"] dd span')


def listed(page: Page, name: str) -> Any:
    """The rows of a table."""
    return page.locator(f"[data-list={name}] tbody tr")


def chart(page: Page, name: str) -> Any:
    """The values above a chart."""
    return page.locator(f"[data-chart={name}] .value b")


def wait_for(page: Page, expression: str, what: str) -> None:
    """Wait until an expression is true; the page's policy forbids Playwright's own way."""
    deadline = time.monotonic() + TIMEOUT_MS / 1000
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, f"not within {TIMEOUT_MS} ms: {what}"
        page.wait_for_timeout(50)


def line(name: str) -> str:
    """An expression for the path of a chart's first line."""
    return f"(document.querySelector('[data-chart={name}] path.series0').getAttribute('d') ?? '')"


# -- what flows ------------------------------------------------------------------------------------


def test_the_page_says_that_all_is_well_and_agrees_with_status(
    shared: Operated, page: Page
) -> None:
    with watching(shared, 3):
        page.goto(shared.url)
        expect(page.get_by_role("status")).to_have_text("Ready")
        expect(page).to_have_title("Ready · quotepush")
        expect(fact(page, "Clients")).to_have_text("3")
        expect(fact(page, "Subscriptions")).to_have_text("6")
        expect(fact(page, "Workers")).to_have_text("2 of 2")
        expect(fact(page, "Feed")).to_have_text("up")
        status = shared.ask("status")
        assert status["totals"]["clients"] == 3
        assert status["totals"]["subscriptions"] == 6
        expect(page.locator("#who")).to_contain_text(f"process {status['pid']}")
        expect(fact(page, "Symbols")).to_have_text(str(shared.ask("symbols")["total"]))
        for name in ("quotes", "events", "bytes"):
            expect(chart(page, name)).to_have_text(re.compile(r"^[1-9].*/s$"))
        for name in ("receive", "reactor"):
            for value in chart(page, name).all():
                expect(value).to_have_text(re.compile(r"^\d.*[µm]?s$"))


def test_lines_grow_and_the_newest_value_is_of_now(shared: Operated, page: Page) -> None:
    page.goto(shared.url)
    length = f"{line('quotes')}.length"
    wait_for(page, f"{length} > 20", "a line")
    before = page.evaluate(length)
    wait_for(page, f"{length} > {before + 20}", "a longer line")


def test_workers_symbols_and_certificates_are_listed(shared: Operated, page: Page) -> None:
    page.goto(shared.url)
    workers = listed(page, "workers")
    expect(workers).to_have_count(2)
    for row, worker in zip(workers.all(), shared.workers(), strict=True):
        expect(row.get_by_role("cell").nth(0)).to_have_text(str(worker["number"]))
        expect(row.get_by_role("cell").nth(1)).to_have_text(str(worker["pid"]))
        expect(row.get_by_role("cell").nth(2)).to_have_text("serving")
    expect(listed(page, "symbols")).to_have_count(20)
    # A rate is known from the second answer on.
    expect(listed(page, "symbols").first.get_by_role("cell").nth(1)).not_to_have_text(NOTHING)
    expect(listed(page, "certificates")).to_contain_text(["localhost"])
    for name in ("Workers", "Top symbols", "Certificates"):
        expect(page.get_by_role("table", name=name)).to_be_visible()


def test_values_of_a_moment_are_read_on_all_charts_with_the_keyboard_and_the_mouse(
    shared: Operated, page: Page
) -> None:
    page.goto(shared.url)
    wait_for(page, f"{line('clients')}.split('L').length > 3", "some points")
    drawing = page.locator("[data-chart=quotes] > svg")
    times = page.locator("figcaption time")
    drawing.focus()
    drawing.press("ArrowLeft")
    expect(times.first).not_to_be_empty()
    assert len(set(times.all_inner_texts())) == 1
    expect(page.locator("[data-chart=clients] .dot.series0")).to_be_visible()
    drawing.press("Escape")
    expect(times.first).to_be_empty()
    box = drawing.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] - 10, box["y"] + 40)
    expect(times.last).not_to_be_empty()
    page.mouse.move(1, 1)
    expect(times.last).to_be_empty()


# -- who is slow, and why --------------------------------------------------------------------------


def test_a_client_that_stops_reading_is_named_with_what_waits_for_it(
    start: Start, page: Page
) -> None:
    with (
        start("--workers", "1", "--send-buffer", str(UNREAD), "--demo-rate", "4000") as place,
        watching(place, 1, receive_buffer=UNREAD),
    ):
        page.goto(place.url)
        expect(listed(page, "slow")).to_have_count(1)
        row = listed(page, "slow").first
        client = place.ask("clients")["clients"][0]
        cells = row.get_by_role("cell")
        expect(cells.nth(0)).to_have_text(client["conn"])
        expect(cells.nth(1)).to_have_text(client["address"])
        expect(cells.nth(4)).not_to_have_text(NOTHING)
        expect(cells.nth(6)).to_contain_text("B")
        expect(cells.nth(6)).not_to_have_text("0\u202fB")
        expect(cells.nth(7)).to_have_text("2")
        expect(fact(page, "Behind")).to_have_text("1")
        expect(chart(page, "clients").last).to_have_text("1")


def test_a_worker_that_was_killed_is_counted_as_restarted(start: Start, page: Page) -> None:
    with start("--workers", "2") as place:
        page.goto(place.url)
        expect(listed(page, "workers")).to_have_count(2)
        victim = place.workers()[0]
        os.kill(victim["pid"], signal.SIGKILL)
        row = listed(page, "workers").filter(has_text=str(victim["pid"]))
        expect(row).to_have_count(0)
        expect(listed(page, "workers").first.get_by_role("cell").last).to_have_text("1")
        expect(fact(page, "Workers")).to_have_text("2 of 2")
        expect(page.get_by_role("status")).to_have_text("Ready")


# -- what goes wrong -------------------------------------------------------------------------------


def test_a_redis_that_hangs_is_a_feed_that_is_down_until_it_goes_on(
    start: Start, page: Page
) -> None:
    with start("--workers", "1") as place:
        page.goto(place.url)
        expect(page.get_by_role("status")).to_have_text("Ready")
        place.redis.process.send_signal(signal.SIGSTOP)
        try:
            expect(page.get_by_role("status")).to_have_text("Not ready: the feed is down")
            expect(fact(page, "Feed")).to_have_text("down")
            expect(chart(page, "quotes")).to_have_text("0/s")
        finally:
            place.redis.process.send_signal(signal.SIGCONT)
        expect(page.get_by_role("status")).to_have_text("Ready")
        expect(fact(page, "Feed")).to_have_text("up")


def test_a_daemon_that_is_gone_is_said_so_and_nothing_old_looks_alive(
    start: Start, page: Page
) -> None:
    with start("--workers", "1"):
        pass  # makes the certificate
    with start("--workers", "1") as place:
        page.goto(place.url)
        expect(listed(page, "symbols")).to_have_count(20)
        expect(chart(page, "quotes")).not_to_have_text(NOTHING)
    status = page.get_by_role("status")
    expect(status).to_have_text("No answer from the daemon")
    expect(page.locator("#detail")).to_contain_text("it can't be reached")
    for name in ("Feed", "Workers", "Clients", "Up"):
        expect(fact(page, name)).to_have_text(NOTHING)
    for value in chart(page, "reactor").all():
        expect(value).to_have_text(NOTHING)
    for name in ("workers", "symbols", "slow"):
        expect(page.locator(f"[data-list={name}].past h2")).to_contain_text("as of")
    with start("--workers", "1"):
        expect(status).to_have_text("Ready")
        expect(chart(page, "quotes")).not_to_have_text(NOTHING)
        expect(page.locator(".past")).to_have_count(0)
        # Two stretches of a line, and nothing below the axis.
        wait_for(page, f"{line('quotes')}.split('M').length === 3", "two stretches")
        lowest = f"Math.max(...{line('quotes')}.match(/ [\\d.]+/g).map(Number))"
        assert page.evaluate(lowest) <= 128


def test_a_daemon_that_hangs_is_no_answer_either(start: Start, page: Page) -> None:
    with start("--workers", "0") as place:
        page.goto(place.url)
        expect(page.get_by_role("status")).to_have_text("Ready")
        place.daemon.process.send_signal(signal.SIGSTOP)
        try:
            expect(page.get_by_role("status")).to_have_text("No answer from the daemon")
            expect(fact(page, "Clients")).to_have_text(NOTHING)
        finally:
            place.daemon.process.send_signal(signal.SIGCONT)
        expect(page.get_by_role("status")).to_have_text("Ready")


def test_a_worker_that_hangs_is_not_counted_on(start: Start, page: Page) -> None:
    with start("--workers", "2") as place:
        page.goto(place.url)
        expect(fact(page, "Workers")).to_have_text("2 of 2")
        hanging = place.workers()[0]
        os.kill(hanging["pid"], signal.SIGSTOP)
        try:
            expect(fact(page, "Workers")).to_have_text("1 of 2")
            expect(page.locator("#warnings")).to_contain_text("worker 1 has said nothing for")
            row = listed(page, "workers").first
            expect(row.locator("[data-label=State]")).to_have_text("silent")
            expect(row.locator("[data-label=Feed]")).to_have_text(NOTHING)
        finally:
            os.kill(hanging["pid"], signal.SIGCONT)
        expect(fact(page, "Workers")).to_have_text("2 of 2")
        expect(page.locator("#warnings li")).to_have_count(0)


def test_a_hidden_page_asks_nothing_and_asks_again_once_it_is_seen(
    shared: Operated, context: BrowserContext
) -> None:
    page = context.new_page()
    page.add_init_script(
        "window.seen = true; Object.defineProperty(document, 'hidden', {get: () => !window.seen})"
    )
    page.clock.install()
    page.goto(shared.url)
    expect(page.get_by_role("status")).to_have_text("Ready")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    show = "(seen) => {window.seen = seen; document.dispatchEvent(new Event('visibilitychange'))}"
    page.evaluate(show, False)
    page.clock.run_for(60_000)
    assert asked == []
    page.evaluate(show, True)
    expect(page.get_by_role("status")).to_have_text("Ready")
    assert {urlsplit(url).path for url in asked} == {"/status", "/clients", "/symbols"}


# -- strangers -------------------------------------------------------------------------------------


def test_what_strangers_name_things_stays_text(start: Start, page: Page) -> None:
    client = {"conn": "c-1", "worker": 0, "address": "192.0.2.7", "user": f'"{HOSTILE}</td>'}
    client |= {"protocol": "x", "seconds": 1.0, "behind": 2.0, "merged": 3, "queued": 4}
    answer = {"clients": [client | {"symbols": 5}], "total": 1}

    def of_strangers(route: Route) -> None:
        route.fulfill(json=answer)

    with start("--workers", "1", "--demo-rate", "1") as place:
        page.route("**/clients*", of_strangers)
        page.goto(place.url)
        for _ in range(50):
            place.redis.cli("PUBLISH", f"quote.{HOSTILE}", "{}")
        expect(listed(page, "symbols").filter(has_text=HOSTILE)).to_have_count(1)
        expect(listed(page, "slow").get_by_role("cell").nth(2)).to_have_text(client["user"])
        assert page.evaluate("document.querySelectorAll('img').length") == 0
        assert page.evaluate("window.ran") is None


def test_it_runs_by_its_policy_and_asks_nobody_else(shared: Operated, page: Page) -> None:
    requests: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text))
    page.add_init_script(
        "document.addEventListener('securitypolicyviolation',"
        " (event) => console.error(event.violatedDirective))"
    )
    page.goto(shared.url)
    expect(listed(page, "symbols")).to_have_count(20)
    expect(page.get_by_role("status")).to_have_text("Ready")
    own = urlsplit(shared.url).netloc
    fetched = [urlsplit(url) for url in requests if not url.startswith("data:")]
    assert {url.netloc for url in fetched} == {own}
    assert complaints == []


# -- how it looks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [360, 700, 1280])
def test_no_width_needs_sideways_scrolling(shared: Operated, page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    with watching(shared, 1):
        page.goto(shared.url)
        expect(listed(page, "symbols")).to_have_count(20)
        expect(chart(page, "receive").last).not_to_have_text(NOTHING)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        # Narrow rows are cards; they stay rows of a table to whoever listens.
        rows = page.get_by_role("table", name="Top symbols").get_by_role("row")
        expect(rows).to_have_count(21)
        assert rows.nth(1).get_by_role("cell").count() == 5


@pytest.mark.parametrize("width", [390, 1280])
def test_no_symbol_and_no_number_is_cut_short(shared: Operated, page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(shared.url)
    expect(listed(page, "symbols")).to_have_count(20)
    cpu = listed(page, "workers").first.locator("[data-label=CPU]")
    expect(cpu).not_to_have_text(NOTHING)
    # As they are at their widest.
    page.evaluate(
        "for (const [list, label, words] of [['symbols', 'Symbol', 'DOGE/USDT'],"
        " ['symbols', 'n', '12.3\u202fM'], ['symbols', 'Quotes/s', '12.3\u202fk']])"
        ' document.querySelector(`[data-list=${list}] [data-label="${label}"]`).textContent = words'
    )
    cut = page.evaluate(
        "[...document.querySelectorAll("
        "  '[data-list=symbols] td, [data-list=symbols] th, [data-list=workers] td')]"
        ".filter((cell) => cell.scrollWidth > cell.clientWidth).map((cell) => cell.textContent)"
    )
    assert cut == []
    assert re.fullmatch(r"\d+\u202f%", cpu.inner_text().removeprefix("CPU").strip())


def test_nothing_moves_while_numbers_change(shared: Operated, page: Page) -> None:
    page.goto(shared.url)
    expect(listed(page, "symbols")).to_have_count(20)
    expect(listed(page, "symbols").first.get_by_role("cell").nth(1)).not_to_have_text(NOTHING)
    expect(chart(page, "receive").last).to_be_visible()
    places = """JSON.stringify(
        [...document.querySelectorAll("figure, figure > svg, .facts div, .list, th")]
            .map((each) => each.getBoundingClientRect()))"""
    before = page.evaluate(places)
    grown = page.evaluate(f"{line('quotes')}.length") + 60
    wait_for(page, f"{line('quotes')}.length > {grown}", "some more points")
    assert page.evaluate(places) == before
