"""The emulator's live page, in a real browser."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlencode, urlsplit

import httpx
import pytest

from retailrocket_async.emulator import EmulatorProcess, Settings, emulator_process

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.endurance, pytest.mark.needs_server("chromium", "curl")]

ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
KEYS = {"apiKey": "dev-api-key", "partnerId": "dev-partner"}
VIEW: dict[str, Any] = {"sessionExternalId": "anna", "productId": 11}
BASKET: dict[str, Any] = {"sessionExternalId": "anna", "productId": 12, "stockId": "msk"}
SEARCH: dict[str, Any] = {"sessionExternalId": "boris", "searchPhrase": "Красный чайник"}


@pytest.fixture(scope="module")
def emulator() -> Iterator[EmulatorProcess]:
    """Provide one emulator for all tests, with a limit that the tests do not reach."""
    with emulator_process(Settings(limit=1000)) as emulator:
        yield emulator


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Provide one browser for all tests."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        yield browser
        browser.close()


class Tab(NamedTuple):
    """A browser tab, the addresses that it requested and the errors that it reported."""

    page: Page
    requested: list[str]
    errors: list[str]


@pytest.fixture(scope="module")
def tab(browser: Browser) -> Tab:
    """Provide one tab for all tests; the theme that one test chooses stays for the next tests."""
    tab = Tab(browser.new_context(permissions=["clipboard-read", "clipboard-write"]).new_page(), [], [])
    tab.page.on("request", lambda request: tab.requested.append(request.url))
    tab.page.on("pageerror", lambda error: tab.errors.append(str(error)))
    tab.page.on("console", lambda message: tab.errors.append(message.text) if message.type == "error" else None)
    return tab


@pytest.fixture
def page(tab: Tab, emulator: EmulatorProcess) -> Iterator[Page]:
    """Provide the page of an empty emulator; fail if the page loads from another host or reports an error."""
    emulator.reset()
    tab.requested.clear()
    tab.errors.clear()
    tab.page.set_viewport_size({"width": 1280, "height": 800})
    tab.page.goto(emulator.root)
    tab.page.wait_for_selector("#connection[data-state=live]")
    yield tab.page
    assert {urlsplit(url).netloc for url in tab.requested} == {urlsplit(emulator.root).netloc}
    assert tab.errors == []


def post(emulator: EmulatorProcess, *envelopes: object, body: bytes | None = None) -> int:
    """Post a batch. Return the status."""
    content = json.dumps(list(envelopes), ensure_ascii=False).encode() if body is None else body
    headers = {"Content-Type": "application/json"}
    return httpx.post(f"{emulator.url}visitorEvents", params=KEYS, content=content, headers=headers).status_code


def run(command: str) -> str:
    """Run a command in a shell with the API key in the environment. Return the command's output."""
    env = {**os.environ, "RETAILROCKET_API_KEY": KEYS["apiKey"], "no_proxy": "*"}
    return subprocess.run(["sh", "-c", command], env=env, capture_output=True, text=True, check=True, timeout=10).stdout


def rows(page: Page, *texts: str) -> None:
    """Wait until the list has exactly one row for each text, newest first."""
    from playwright.sync_api import expect

    # The order of the rows in the document is not their order on the page, which is in `aria-posinset`.
    listed = page.locator(".row")
    expect(listed).to_have_count(len(texts))
    for place, text in enumerate(texts, 1):
        expect(page.locator(f".row[aria-posinset='{place}']")).to_contain_text(text)


def has(page: Page, selector: str, text: str | re.Pattern[str]) -> None:
    """Wait until the element contains `text`."""
    from playwright.sync_api import expect

    expect(page.locator(selector)).to_contain_text(text)


def test_the_first_event(page: Page, emulator: EmulatorProcess) -> None:
    """If the page is empty, it shows a shell command; running the command sends an event, which the page shows."""
    command = page.locator("#first-command").inner_text()
    answer = run(command)

    assert "{}" == answer
    assert KEYS["apiKey"] not in page.content()
    rows(page, "visitor1")
    has(page, ".row", re.compile(r"view.*visitor1.*productId 123456"))
    assert not page.locator("#empty").is_visible()
    has(page, "#count-events", "1")
    has(page, "#rate-most", "1")
    heights = [bar.get_attribute("height") for bar in page.locator("#plot .within").all()]
    assert 1 == len([height for height in heights if float(height or 0) > 0])


def test_filters(page: Page, emulator: EmulatorProcess) -> None:
    """If filters for type, visitor or text are set, only matching events are shown; the Clear button shows all."""
    post(emulator, {"view": VIEW}, {"search": SEARCH}, {"addToBasket": BASKET})
    rows(page, "addToBasket", "search", "view")
    page.select_option("#type", "view")
    rows(page, "view")
    page.select_option("#type", "")
    page.fill("#visitor", "anna")
    rows(page, "addToBasket", "view")
    page.fill("#search", "MSK")
    rows(page, "addToBasket")
    page.fill("#search", "чайник")
    rows(page)
    assert page.locator("#nothing").is_visible()
    page.fill("#visitor", "")
    rows(page, "Красный чайник")
    page.click("#clear")
    rows(page, "addToBasket", "search", "view")


def test_a_refused_request(page: Page, emulator: EmulatorProcess) -> None:
    """If a request is refused, the page shows every reason and marks the wrong places in the body."""
    odd = {"sessionExternalId": "a b", "productId": "12", "x: y": [1], "stockId": ""}
    post(emulator, {"view": VIEW}, {"view": odd}, {"order": {**VIEW, "quantity": 0, "price": 1}}, {"viw": {}}, 7)
    page.click("[data-view=refused]")
    rows(page, "[1].view.sessionExternalId: must be letters and digits only (and 7 more)")
    page.click(".row")
    page.wait_for_selector(".reasons li")
    [refused] = emulator.refused()

    assert refused["reasons"] == page.locator(".reasons li").all_inner_texts()
    assert [
        '"a b"',
        '"12"',
        '"x: y": [1]',
        '""',
        "0",
        "transaction: is missing",
        '"viw": {}',
        "7",
    ] == page.locator(".body mark").all_inner_texts()
    has(page, ".body", '"12",  ← must be an integer, not a string')


def test_a_refused_body_that_is_no_json(page: Page, emulator: EmulatorProcess) -> None:
    """If a body is not JSON, the wrong character is marked; of a large batch, only the bad event is shown in full."""
    post(emulator, body='[{"search": {"searchPhrase": "чай"}, oops]'.encode())
    page.click("[data-view=refused]")
    page.click(".row")
    has(page, ".body mark", "o")
    post(emulator, *[{"view": VIEW}] * 150, {"view": {"sessionExternalId": "a"}}, *[{"view": VIEW}] * 2)
    page.click("#newest")
    rows(page, "[150]", "must be JSON")
    page.click(".row[aria-posinset='1']")
    has(page, ".body mark", "productId: is missing")

    assert ["… 150 more events", "… 2 more events"] == page.locator(".body button").all_inner_texts()
    page.locator(".body button").first.click()
    has(page, ".body button >> nth=0", "… 50 more events")


def test_faults(page: Page, emulator: EmulatorProcess) -> None:
    """If a fault's button is clicked, the next requests fail, as many as the field says; the faults can be cleared."""
    page.fill("#times", "2")
    page.get_by_role("button", name="503").click()
    has(page, "#pending", "503 2 left")
    page.get_by_role("button", name="429, wait 2 s").click()
    has(page, "#pending", "429, wait 2 s 2 left")
    statuses = [post(emulator, {"view": VIEW}) for _ in range(3)]
    has(page, "#pending", "429, wait 2 s 1 left")
    page.click("#faults-clear")
    page.wait_for_selector("#pending li", state="detached")
    statuses.append(post(emulator, {"view": VIEW}))
    page.click("[data-view=requests]")

    assert [503, 503, 429, 200] == statuses
    rows(page, "200", "fault: status", "503", "503")


def test_every_fault_is_one(page: Page, emulator: EmulatorProcess) -> None:
    """If all fault buttons are clicked, the emulator accepts all these faults, which are of eight kinds."""
    buttons = page.locator("#fault-buttons button")
    for place in range(buttons.count()):
        buttons.nth(place).click()
    has(page, "#faults-count", f"{buttons.count()} pending")
    kinds = {fault["kind"] for fault in emulator.faults()}

    assert {"status", "latency", "stall", "reset_before", "reset_after", "close_before", "truncate", "garbage"} == kinds


def test_the_order_of_a_visitors_events(page: Page, emulator: EmulatorProcess) -> None:
    """If requests violate the order, the page counts and lists them, with both requests and the journey."""
    noon, before = "2026-01-01T12:00:00.000Z", "2026-01-01T11:59:55.000Z"
    post(emulator, {"view": {**VIEW, "timestamp": noon}})
    post(emulator, {"view": {**VIEW, "timestamp": before}}, {"search": SEARCH})
    page.click("[data-view=order]")
    rows(page, "#2 has an event 5.0 s older than one of #1")
    emulator.fail_with("stall")
    at, body = urlsplit(emulator.root), json.dumps([{"view": VIEW}])
    with socket.create_connection((at.hostname or "", at.port or 0)) as stalled:
        head = f"POST /1.0/visitorEvents?{urlencode(KEYS)} HTTP/1.1\r\nHost: e\r\nContent-Length: {len(body)}\r\n\r\n"
        stalled.sendall((head + body).encode())
        while emulator.faults():
            page.wait_for_timeout(10)
        post(emulator, {"addToBasket": BASKET})
        rows(page, "#4 arrived while #3 was under way", "#2 has")
    has(page, "#count-order", "2")
    page.fill("#visitor", "boris")
    rows(page)
    page.fill("#visitor", "anna")
    page.locator(".row[aria-posinset='1']").click()
    has(page, "#detail", re.compile("overlap.*Request #4 arrived while #3"))
    page.locator("#detail").get_by_role("button", name="request #4").click()
    has(page, "#detail", "addToBasket")
    page.locator(".row[aria-posinset='2']").click()
    has(page, "#detail", re.compile(f"{before}.*{noon}"))
    page.locator(".row[aria-posinset='2'] .who").click()
    has(page, ".journey", "addToBasket")
    page.click("#clear")
    emulator.reset()
    rows(page)
    has(page, "#count-order", "0")


def test_reset(page: Page, emulator: EmulatorProcess) -> None:
    """If Reset is clicked, events, faults and rows are removed."""
    post(emulator, {"view": VIEW})
    emulator.add_faults([{"kind": "stall"}])
    rows(page, "view")
    page.click("#reset")
    rows(page)
    has(page, "#count-events", "0")

    assert page.locator("#empty").is_visible()
    assert (0, []) == (emulator.stats()["requests"], emulator.faults())


def test_a_journey(page: Page, emulator: EmulatorProcess) -> None:
    """If a visitor is clicked, all of the visitor's events are listed in order, and later events are added."""
    post(emulator, {"view": VIEW}, {"search": SEARCH}, {"addToBasket": BASKET})
    page.locator(".who", has_text="anna").first.click()
    has(page, ".journey li >> nth=1", "addToBasket")
    post(emulator, {"order": {**BASKET, "quantity": "1"}})
    has(page, ".journey li >> nth=2", "not accepted")

    assert ["view", "addToBasket", "order"] == page.locator(".journey button").all_inner_texts()
    page.locator(".journey button").nth(1).focus()
    post(emulator, {"view": {**VIEW, "productId": 13}})
    has(page, ".journey li >> nth=3", "13")
    assert "addToBasket" == page.evaluate("document.activeElement.textContent")
    page.locator(".journey button").first.click()
    has(page, ".fields-table", "11")


def test_curl(page: Page, emulator: EmulatorProcess) -> None:
    """If the shown curl command is run in a shell, it sends the same body again, whatever characters the body has."""
    phrase = "it's \"$HOME\" `id` $(id) \\ !x %41 &; * \t 'чай' 🫖 \u2028"
    body = json.dumps([{"search": {**SEARCH, "searchPhrase": phrase}}], ensure_ascii=False, indent=1).encode()
    post(emulator, body=body)
    page.click("[data-view=requests]")
    page.click(".row")
    page.click("#copy-curl")
    has(page, "#status", "Command copied")
    command: str = page.evaluate("navigator.clipboard.readText()")

    assert "apiKey=$RETAILROCKET_API_KEY" in command
    assert "{}" == run(command)
    assert [body.decode()] * 2 == [request["body"] for request in emulator.requests()]


def test_curl_of_an_attacker(page: Page, emulator: EmulatorProcess) -> None:
    """If a request contains shell syntax, its command runs only curl; for control characters there is no command."""
    method = "`ID`|$X&'"
    httpx.request(
        method, f"{emulator.root}/1.0/$(id)`id`\"'!", params={'"$(id)`': "'!\\"}, headers={"Content-Type": "'`id`"}
    )
    post(emulator, body=b'"\x15id\n')
    page.click("[data-view=requests]")
    rows(page, "visitorEvents", "$(id)`id`")
    page.locator(".row[aria-posinset='2']").click()
    has(page, ".curl", "curl")
    words = shlex.split(page.locator(".curl").inner_text().replace("\\\n", ""))
    url = words[3].replace("$RETAILROCKET_API_KEY", "key")
    page.locator(".row[aria-posinset='1']").click()
    has(page, ".detail", "bytes that no command can")

    assert ["curl", "-X", method, "-H", "Content-Type: '`id`"] == [*words[:3], *words[4:]]
    # The shell interprets these characters within double quotes, so the URL must not contain them.
    assert not set(url) & set('`"$!\\')
    assert "/1.0/$(id)`id`\"'!" == httpx.URL(url).path
    assert {"apiKey": "key", '"$(id)`': "'!\\"} == dict(httpx.URL(url).params)


def test_text_stays_text(page: Page, emulator: EmulatorProcess) -> None:
    """If a request contains markup, the page shows it as text."""
    evil = "<img src=x onerror='document.title=`pwned`'><script>document.title='pwned'</script>"
    emulator.add_faults([{"kind": "stall", "path": evil, "contains": evil}])
    post(emulator, {"search": {"sessionExternalId": "a", "searchPhrase": evil}})
    post(emulator, {evil: {evil: evil, "sessionExternalId": evil}})
    httpx.post(f"{emulator.root}/{evil}", params={evil: evil}, headers={"Content-Type": evil}, content=evil)
    has(page, "#pending", evil)
    has(page, ".row .fields", evil)
    page.locator(".who").click()
    has(page, ".journey .what", evil)
    for view, count in (("refused", 2), ("requests", 3)):
        page.click(f"[data-view={view}]")
        for place in range(count):
            page.locator(f".row[aria-posinset='{place + 1}']").click()
            has(page, ".body", "<img src=x")

    assert 0 == page.locator("body script, .list img, .detail img, .faults img").count()
    assert "Retail Rocket emulator" == page.title()


def test_thousands_of_events(page: Page, emulator: EmulatorProcess) -> None:
    """If there are 6,000 events, the page keeps the last 5,000, and draws only the visible rows."""
    for first in range(0, 6000, 500):
        numbers = range(first, first + 500)
        post(emulator, *[{"view": {"sessionExternalId": f"v{n % 50}", "productId": n}} for n in numbers])
    has(page, "#count-events", "6,000")
    has(page, "#n-events", "5,000")
    has(page, ".row[aria-posinset='1']", "productId 5999")
    few = page.locator(".row").count()
    page.locator("#list").focus()
    page.keyboard.press("End")
    has(page, ".row[aria-posinset='5000']", "productId 1000")

    assert (True, True) == (few < 60, page.locator(".row").count() < 60)
    assert page.locator("*").count() < 1000
    page.fill("#search", '"productid":4242')
    page.keyboard.press("Escape")
    page.fill("#search", "4242")
    rows(page, "productId 4242")


def test_a_held_list(page: Page, emulator: EmulatorProcess) -> None:
    """If an item is selected, new items do not move the list; a button shows their number, and a click lists them."""
    post(emulator, {"view": VIEW})
    page.click(".row")
    post(emulator, {"search": SEARCH})
    has(page, "#newest", "1 new")
    rows(page, "view")
    page.click("#newest")
    rows(page, "search", "view")


def test_keyboard(page: Page, emulator: EmulatorProcess) -> None:
    """If only the keyboard is used, search, list, details and journey work, and the focus is visible."""
    post(emulator, {"view": VIEW}, {"search": SEARCH}, {"addToBasket": BASKET})
    rows(page, "addToBasket", "search", "view")
    press = page.keyboard.press
    press("/")
    page.keyboard.type("anna")
    rows(page, "addToBasket", "view")
    press("ArrowDown")
    has(page, ".row[aria-selected=true]", "addToBasket")
    press("ArrowDown")
    has(page, ".row[aria-selected=true]", "view")
    active = page.locator("#list").get_attribute("aria-activedescendant")
    assert "view" in page.locator(f"#{active}").inner_text()
    assert "none" != page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    press("v")
    has(page, ".journey", "addToBasket")
    press("Enter")
    assert "detail" == page.evaluate("document.activeElement.id")
    press("Escape")
    assert "list" == page.evaluate("document.activeElement.id")
    has(page, ".detail", "Choose an event")
    press("Escape")
    rows(page, "addToBasket", "search", "view")
    page.focus("body")
    page.locator("#theme").focus()
    order = []
    for _ in range(4):
        press("Tab")
        order.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert ["reset", "SUMMARY", "times", "BUTTON"] == order


def test_a_phone(page: Page, emulator: EmulatorProcess) -> None:
    """If the screen is as narrow as a phone's, the page is not wider than the screen; the details cover the list."""
    page.set_viewport_size({"width": 375, "height": 700})
    post(emulator, {"view": {**VIEW, "stockId": "x" * 50}}, {"search": SEARCH})
    rows(page, "search", "view")
    assert not page.locator("#detail").is_visible()
    page.locator(".row[aria-posinset='2']").click()
    has(page, "#detail", "x" * 50)
    widths = page.evaluate("[document.documentElement.scrollWidth, document.querySelector('#detail').scrollWidth]")
    page.get_by_role("button", name="Close", exact=True).click()
    page.wait_for_selector("#detail", state="hidden")

    assert max(widths) <= 375


def test_themes(page: Page) -> None:
    """If no theme is chosen, the page uses the system's theme; a chosen theme survives a reload."""
    background = "getComputedStyle(document.body).backgroundColor"
    light, _ = page.evaluate(background), page.emulate_media(color_scheme="dark")
    dark = page.evaluate(background)
    page.click("#theme")
    chosen = page.evaluate(background)
    page.reload()
    reloaded = page.evaluate(background)
    for _ in ("dark", "system"):
        page.click("#theme")

    assert (light, light, dark) == (chosen, reloaded, page.evaluate(background))
    assert light != dark


def test_another_emulator_on_the_port(browser: Browser) -> None:
    """If the emulator is replaced on its port, the page shows this, reconnects and drops the old events."""
    with emulator_process() as first:
        port = urlsplit(first.root).port or 0
        page = browser.new_page()
        page.goto(first.root)
        post(first, {"view": VIEW})
        rows(page, "view")
    has(page, "#connection-text", "reconnecting")
    with emulator_process(port=port) as second:
        post(second, {"search": SEARCH})
        rows(page, "search")
        has(page, "#connection-text", "live")
        page.close()
