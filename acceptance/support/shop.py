"""A shop that makes numbered events and stores the outcome that the client reported for each event."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from acceptance.support.fault import NAMES, POISON
from acceptance.support.reconciliation import Reported, reported
from retailrocket_async import AddToBasket, CustomEvent, Order, RecomAddToBasket, RecomTap, View

if TYPE_CHECKING:
    from retailrocket_async import Event, Outcome

_WEIGHTS = (60, 15, 5, 10, 5, 5)
"""The relative frequency of each name in `NAMES`."""

_STOCKS = (None, "1", "warehouse-of-the-north", "region/" + "x" * 43)

_BUSY = 10
"""Number of visitors whose events follow one another so quickly that several wait behind one request."""


class Shop:
    """Makes events with the numbers 0, 1, 2, ..., and stores their outcomes.

    Attributes:
        outcomes: byte n is the `Reported` code of event number n.
        names: byte n is the position in `NAMES` of the name of event number n.
        bad: the numbers of the events whose content gives the server a reason to refuse them.
    """

    def __init__(self, seed: int) -> None:
        self.outcomes = bytearray()
        self.names = bytearray()
        self.bad: set[int] = set()
        self._random = random.Random(seed)

    def event(self, *, poison: bool = False, padding: int = 0, bad: bool = False, group: str = "") -> tuple[int, Event]:
        """Return a new event and its number, which is one above the previous event's number.

        Args:
            poison: whether the server refuses every batch with this event.
            padding: the number of bytes to add to the event; if above 0, the event has a free text field for them.
            bad: whether the server has another reason to refuse the event, for example its size.
            group: the beginning of the visitor's id. Groups share no visitors. The server judges the order of a
                visitor's events by their numbers, so events that are tracked in no certain order need groups.
        """
        number = len(self.outcomes)
        [kind] = self._random.choices(range(len(NAMES)), _WEIGHTS)
        if padding:
            kind = len(NAMES) - 1
        elif poison:
            kind = min(kind, 2)
        if poison or bad:
            self.bad.add(number)
        self.outcomes.append(Reported.NEVER_TRACKED)
        self.names.append(kind)
        return number, self._make(
            kind, number, _visitor(group, number), POISON if poison else self._random.choice(_STOCKS), padding
        )

    def settle(self, number: int, outcome: Outcome | None) -> None:
        """Store the outcome of an accepted event; None if the client has reported no outcome."""
        self.outcomes[number] = reported(outcome, bad=number in self.bad)

    def _make(self, kind: int, number: int, visitor: str, stock: str | None, padding: int) -> Event:
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


def _visitor(group: str, number: int) -> str:
    """Return the id of the visitor of an event: every eighth event is of one of a few busy visitors."""
    if number % 8 == 0:
        return f"{group}busy{number // 8 % _BUSY}"
    return f"{group}visitor{number % 997}"
