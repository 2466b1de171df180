"""The shop: makes numbered events, and keeps what the client said of each."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from _books import Told, told
from _fault import NAMES, POISON

from retailrocket_async import AddToBasket, CustomEvent, Order, RecomAddToBasket, RecomTap, View

if TYPE_CHECKING:
    from retailrocket_async import Event, Outcome

_WEIGHTS = (60, 15, 5, 10, 5, 5)
"""How often each of `NAMES` happens."""

_STOCKS = (None, "1", "warehouse-of-the-north", "region/" + "x" * 43)


class Shop:
    """Numbers events from 0.

    Attributes:
        said: a `Told` for each event by its number.
        names: the index in `NAMES` of each event's name.
        bad: numbers of the events that the server has a reason to refuse.
    """

    def __init__(self, seed: int) -> None:
        self.said = bytearray()
        self.names = bytearray()
        self.bad: set[int] = set()
        self._random = random.Random(seed)

    def event(self, *, poison: bool = False, padding: int = 0, bad: bool = False) -> tuple[int, Event]:
        """Return the next number and its event.

        Args:
            poison: the server refuses it.
            padding: bytes more than usual; above 0 the event is one that has room for them.
            bad: the server has another reason to refuse it.
        """
        number = len(self.said)
        [kind] = self._random.choices(range(len(NAMES)), _WEIGHTS)
        if padding:
            kind = len(NAMES) - 1
        elif poison:
            kind = min(kind, 2)
        if poison or bad:
            self.bad.add(number)
        self.said.append(Told.NEVER_TRACKED)
        self.names.append(kind)
        return number, self._make(kind, number, POISON if poison else self._random.choice(_STOCKS), padding)

    def settle(self, number: int, outcome: Outcome | None) -> None:
        """Note what the client says of an event that it has accepted; None where it has said nothing yet."""
        self.said[number] = told(outcome, bad=number in self.bad)

    def _make(self, kind: int, number: int, stock: str | None, padding: int) -> Event:
        visitor = f"visitor{number % 997}"
        match NAMES[kind]:
            case "view":
                return View(session_external_id=visitor, product_id=number, stock_id=stock)
            case "addToBasket":
                return AddToBasket(session_external_id=visitor, product_id=number, stock_id=stock)
            case "order":
                return Order(
                    session_external_id=visitor,
                    product_id=number,
                    stock_id=stock,
                    quantity=1,
                    price=number % 1000 + 0.99,
                    transaction=f"transaction {number}",
                )
            case "recomTap":
                return RecomTap(session_external_id=visitor, product_id=number, stock_id=stock, recom_block_id="block")
            case "recomAddToBasket":
                return RecomAddToBasket(
                    session_external_id=visitor, product_id=number, stock_id=stock, recom_block_id="block"
                )
            case name:
                fields = {"sessionExternalId": visitor, "productId": number, "note": "x" * padding}
                return CustomEvent(name=name, fields=fields)
