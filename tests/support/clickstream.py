"""Makes files in the format of Retail Rocket's public clickstream data set."""

from __future__ import annotations

import random

HEADER = "timestamp,visitorid,event,itemid,transactionid"


def rows(count: int, seed: int = 1) -> list[str]:
    """Return `count` random rows. Each visitor has several rows, and about every fiftieth row is an order."""
    chance = random.Random(seed)
    made: list[str] = []
    for number in range(count):
        visitor = chance.randint(1, max(2, count // 3))
        kind = chance.choices(("view", "addtocart", "transaction"), (94, 4, 2))[0]
        transaction = str(number) if kind == "transaction" else ""
        made.append(f"{1430622120563 + 1000 * number},{visitor},{kind},{chance.randint(1, 466866)},{transaction}")
    return made


def clickstream(lines: list[str]) -> bytes:
    """Return the content of a file: the header and these rows."""
    return "\n".join([HEADER, *lines, ""]).encode()
