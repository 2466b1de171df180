"""Draw the pictures of the emulator's page for the documentation: ``python docs/screenshots.py``. Needs Chromium."""

import asyncio
import random
import shutil
import time
from base64 import b64decode
from pathlib import Path
from typing import Any, Final, Literal

import orjson
from playwright.async_api import Browser, ViewportSize, async_playwright

from retailrocket_async.emulator import Emulator, Settings, running_emulator

IMAGES = Path(__file__).parent / "images"
SIZES: Final[dict[str, ViewportSize]] = {
    "desktop": {"width": 1280, "height": 800},
    "phone": {"width": 375, "height": 812},
}
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
KEYS: Final = {"partnerId": "dev-partner"}
THEMES: Final[tuple[Literal["light", "dark"], ...]] = ("light", "dark")
PHRASES = ["чайник электрический", "red shoes", "детская коляска", "usb-c cable 2m", "кофемолка"]
WRONG: Final[list[dict[str, Any]]] = [
    {
        "order": {
            "sessionExternalId": "5f2c9d17a0b84e6c",
            "productId": "184223",
            "quantity": 0,
            "price": 2490.00,
            "transaction": "T-20418",
            "coupon": "SPRING",
        }
    },
    {"view": {"sessionExternalId": "5f2c9d17a0b84e6c", "productId": 184223, "stockId": "msk-01"}},
]


class Shop:
    """Makes random events of a shop's visitors: most view products, some fill a basket, few order."""

    def __init__(self) -> None:
        self.random = random.Random(5)  # noqa: S311 - a picture, not a secret
        self.visitors = [f"{self.random.getrandbits(64):016x}" for _ in range(70)]

    def event(self) -> tuple[str, dict[str, Any]]:
        """Return the name and the fields of a random event."""
        dice = self.random
        product = dice.randrange(180_000, 190_000)
        who = {"sessionExternalId": dice.choice(self.visitors)}
        stock = {"stockId": dice.choice(["msk-01", "spb-02"])}
        choices: list[tuple[str, dict[str, Any]]] = [
            ("view", who | {"productId": product} | stock),
            ("categoryView", who | {"categoryId": dice.randrange(100, 400)}),
            ("search", who | {"searchPhrase": dice.choice(PHRASES)} | stock),
            ("addToBasket", who | {"productId": product} | stock),
            ("recomBlockViewed", who | {"recomBlockId": "63f0aa1b"}),
            ("recomTap", who | {"productId": product, "recomBlockId": "63f0aa1b"}),
            (
                "order",
                who
                | {"productId": product, "quantity": dice.randint(1, 3), "price": dice.randrange(290, 9990, 100)}
                | {"transaction": f"T-{dice.randrange(20_000, 21_000)}"},
            ),
            ("setContact", who | {"contactExternalId": f"c{dice.randrange(9999)}", "email": "ivan@example.org"}),
        ]
        return dice.choices(choices, [40, 14, 9, 12, 10, 8, 5, 2])[0]


def minute(emulator: Emulator) -> None:
    """Fill the emulator's records with the requests of the past minute, with a burst that exceeds the limit."""
    shop, now = Shop(), time.time()
    for ago in range(59, 0, -1):
        rush = 58 if ago in (21, 22) else 44 if ago in (20, 23, 24) else 0
        count = rush or max(2, 17 - abs(ago - 33) // 2 + shop.random.randrange(-4, 5))
        for moment in sorted(int(now) - ago + shop.random.random() for _ in range(count)):
            record = emulator.ledger.open(
                time=moment,
                method="POST",
                path="/1.0/visitorEvents",
                query=dict(KEYS),
                content_type="application/json",
            )
            emulator.window.arrive(moment)
            events = [shop.event() for _ in range(shop.random.choice([1, 1, 2, 3]))]
            body = orjson.dumps([{name: fields} for name, fields in events])
            emulator.ledger.read(record, body, len(body))
            if emulator.window.admit(moment, 50):
                emulator.ledger.accept(record, events, body)
                emulator.close(record, 200)
            else:
                emulator.ledger.refuse(record, ["limit of 50 requests exceeded"])
                emulator.close(record, 429)


async def draw(browser: Browser, root: str, theme: Literal["light", "dark"], device: str) -> None:
    """Save a picture of the page for one theme and device."""
    page = await browser.new_page(viewport=SIZES[device], color_scheme=theme)
    await page.goto(root)
    await page.wait_for_selector(".row")
    if device == "desktop":
        if theme == "light":
            await page.locator("#faults summary").click()
            await page.get_by_role("button", name="Refused").click()
            await page.locator(".row", has_text="order").first.click()
            await page.wait_for_selector("mark")
        else:
            await page.locator(".row[aria-posinset='4'] .who").click()
            await page.wait_for_selector(".journey")
    await page.wait_for_timeout(300)
    # Playwright cannot write WebP, which is a third of the size of a PNG.
    devtools = await page.context.new_cdp_session(page)
    screenshot = await devtools.send("Page.captureScreenshot", {"format": "webp", "quality": 88})
    IMAGES.joinpath(f"emulator-{theme}-{device}.webp").write_bytes(b64decode(screenshot["data"]))
    await page.close()


async def main() -> None:
    """Draw the pictures for every theme and device."""
    IMAGES.mkdir(exist_ok=True)
    async with async_playwright() as playwright, running_emulator(Settings()) as emulator:
        browser = await playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        minute(emulator.emulator)
        request = await playwright.request.new_context(base_url=emulator.root)
        await request.post(
            "/1.0/visitorEvents",
            params={**KEYS, "apiKey": emulator.settings.api_key},
            data=orjson.dumps(WRONG).decode(),
            headers={"Content-Type": "application/json"},
        )
        for moment in ("2026-01-01T12:00:05+00:00", "2026-01-01T11:59:58+00:00"):
            await request.post(
                "/1.0/view",
                params={**KEYS, "apiKey": emulator.settings.api_key},
                data={"sessionExternalId": "5f2c9d17a0b84e6c", "productId": 184223, "timestamp": moment},
            )
        emulator.fail_with("status", status=429, retry_after="2", times=3)
        emulator.fail_with("stall")
        for theme in THEMES:
            for device in SIZES:
                await draw(browser, emulator.root, theme, device)
        await browser.close()


if __name__ == "__main__":
    asyncio.run(main())
