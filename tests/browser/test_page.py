"""The web page in a real Chromium, against a real daemon with a simulated market."""

import time
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, expect

TIMEOUT_MS = 20_000
LIVE_ROWS = "document.querySelectorAll('tr[data-symbol][data-n]').length"
PRICES = (
    "Object.fromEntries([...document.querySelectorAll('tr[data-symbol][data-n]')]"
    ".map((row) => [row.dataset.symbol, row.querySelector('.last').textContent]))"
)


class Daemon(Protocol):
    """What the tests need of the `demo_daemon` fixture."""

    url: str


def wait_for(page: Page, expression: str, arg: object = None) -> None:
    """Waits until an expression, or a function of `arg`, is true in the page.

    Playwright's own `wait_for_function` needs `eval` in the page, which the page's policy forbids.
    """
    deadline = time.monotonic() + TIMEOUT_MS / 1000
    while not page.evaluate(expression, arg):
        assert time.monotonic() < deadline, f"not within {TIMEOUT_MS} ms: {expression}"
        page.wait_for_timeout(50)


def add(page: Page, text: str) -> None:
    """Types symbols into the page and sends the form."""
    page.get_by_label("Add symbols").fill(text)
    page.get_by_role("button", name="Add", exact=True).click()


def test_at_least_fifty_live_rows_appear_and_their_prices_change(
    demo_daemon: Daemon, page: Page, tmp_path: Path
) -> None:
    page.goto(demo_daemon.url)
    wait_for(page, f"{LIVE_ROWS} >= 50")
    expect(page.locator("#pill")).to_have_text("Connected")
    before = page.evaluate(PRICES)
    wait_for(
        page,
        f"(before) => Object.entries({PRICES})"
        ".filter(([symbol, price]) => before[symbol] && before[symbol] !== price).length >= 5",
        arg=before,
    )
    picture = tmp_path / "page.png"
    page.screenshot(path=picture)
    assert picture.stat().st_size > 10_000


def test_the_figures_above_the_table_come_alive(demo_daemon: Daemon, page: Page) -> None:
    page.goto(demo_daemon.url)
    expect(page.locator("#feed")).to_contain_text("up", timeout=TIMEOUT_MS)
    expect(page.locator("#rtt")).to_contain_text("ms", timeout=TIMEOUT_MS)
    for figure in ("messages", "quotes"):
        wait_for(page, f"Number(document.getElementById('{figure}').textContent) > 0")


@pytest.mark.parametrize("width", [390, 1280])
def test_no_symbol_and_no_number_is_cut_short(demo_daemon: Daemon, page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(f"{demo_daemon.url}#600519.SH,USD/JPY,BTC/USDT")
    wait_for(page, f"{LIVE_ROWS} === 3")
    # As they are after days of a busy market.
    page.evaluate(
        "for (const [name, words] of [['volume', '326800000'], ['n', '12345678'],"
        " ['change', '−1368.62 (−1.57%)']])"
        " for (const cell of document.querySelectorAll(`td.${name}`)) cell.textContent = words"
    )
    cut = page.evaluate(
        "[...document.querySelectorAll('td:not(.remove)')].flatMap((cell) => {"
        "  const inner = cell.querySelector('b') ?? cell;"
        "  const {right} = cell.getBoundingClientRect();"
        "  const over = inner === cell ? cell.scrollWidth > cell.clientWidth"
        "    : inner.getBoundingClientRect().right > right + 0.5;"
        "  return over ? [cell.textContent] : [];"
        "})"
    )
    assert cut == []


def test_adding_and_removing_a_symbol_changes_the_table_and_the_address(
    demo_daemon: Daemon, page: Page
) -> None:
    page.goto(f"{demo_daemon.url}#FIRST,600519.SH")
    rows = page.locator("tr[data-symbol]")
    expect(rows).to_have_count(2)
    add(page, "NEW1, NEW2")
    expect(rows).to_have_count(4)
    expect(page.locator("tr[data-symbol=NEW2]")).to_be_visible()
    assert page.evaluate("location.hash") == "#NEW1,NEW2,FIRST,600519.SH"
    page.get_by_role("button", name="Remove NEW1").click()
    expect(page.locator("tr[data-symbol=NEW1]")).to_have_count(0)
    assert page.evaluate("location.hash") == "#NEW2,FIRST,600519.SH"
    page.reload()
    expect(rows).to_have_count(3)
    page.get_by_role("button", name="Clear all").click()
    expect(rows).to_have_count(0)
    assert page.evaluate("location.hash") == ""
    expect(page.get_by_text("Your list is empty")).to_be_visible()


def test_a_bad_symbol_is_refused_in_words(demo_daemon: Daemon, page: Page) -> None:
    page.goto(f"{demo_daemon.url}#GOOD")
    add(page, "a*b")
    errors = page.get_by_role("list", name="Errors")
    expect(errors).to_contain_text("Not a valid symbol: a*b", timeout=TIMEOUT_MS)
    expect(page.locator("tr[data-symbol]")).to_have_count(1)
    assert page.evaluate("location.hash") == "#GOOD"
    errors.get_by_role("button", name="Dismiss").click()
    expect(errors.get_by_role("listitem")).to_have_count(0)


def test_the_raw_frames_panel_shows_frames_both_ways_and_can_be_paused(
    demo_daemon: Daemon, page: Page
) -> None:
    page.goto(demo_daemon.url)
    wait_for(page, f"{LIVE_ROWS} > 0")
    page.get_by_text("Raw frames", exact=True).click()
    wait_for(
        page, "document.querySelector('#frames .in code')?.textContent.startsWith('[{\"ev\":')"
    )
    page.get_by_label("Hide quotes").check()
    wait_for(
        page, "document.querySelector('#frames .out code')?.textContent.startsWith('{\"op\":')"
    )
    page.get_by_label("Hide quotes").uncheck()
    page.get_by_role("button", name="Pause").click()
    quotes = "document.querySelector('#frames').textContent.includes('\"quote\"')"
    wait_for(page, quotes)
    shown = page.locator("#frames").inner_text()
    before = page.evaluate(PRICES)
    wait_for(page, f"(before) => JSON.stringify({PRICES}) !== JSON.stringify(before)", arg=before)
    assert page.locator("#frames").inner_text() == shown


def test_prices_are_shown_as_they_were_sent(demo_daemon: Daemon, page: Page) -> None:
    page.goto(demo_daemon.url)
    shown = page.evaluate(
        """async () => {
          const {parseExact} = await import("./quotepush.js");
          const [{n, d}] = parseExact('[{"n":7,"d":{"price":10.50,"volume":1e3}}]');
          return [typeof n, String(d.price), Number(d.price), JSON.stringify(d)];
        }"""
    )
    assert shown == ["number", "10.50", 10.5, '{"price":10.50,"volume":1e3}']


def test_everything_comes_from_the_page_s_own_origin_and_the_console_stays_clean(
    demo_daemon: Daemon, page: Page
) -> None:
    requests: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("websocket", lambda socket: requests.append(socket.url))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "console",
        lambda message: (
            complaints.append(message.text) if message.type in ("error", "warning") else None
        ),
    )
    page.goto(demo_daemon.url)
    wait_for(page, f"{LIVE_ROWS} > 0")
    add(page, "ANOTHER")
    page.get_by_text("Raw frames", exact=True).click()
    wait_for(page, "document.querySelector('#frames li') !== null")
    own = urlsplit(demo_daemon.url).netloc
    fetched = [url for url in requests if not url.startswith("data:")]
    assert [url for url in fetched if urlsplit(url).netloc != own] == []
    assert any(url.startswith("wss:") for url in fetched)
    assert complaints == []


def test_a_phone_s_width_needs_no_sideways_scrolling(demo_daemon: Daemon, page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(demo_daemon.url)
    wait_for(page, f"{LIVE_ROWS} >= 50")
    add(page, "a*b")
    page.get_by_text("Raw frames", exact=True).click()
    wait_for(page, "document.querySelector('#frames li') !== null")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("document.body.scrollWidth") <= 390
