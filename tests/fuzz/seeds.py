"""The inputs that the fuzzer starts from: valid events, the examples of the API document and the cases in `SMALL`."""

from __future__ import annotations

import random

from hypothesis import HealthCheck, given, settings

from retailrocket_async import EVENT_TYPES, Codec, Event
from retailrocket_async._events.codec import join
from tests.events.test_api_examples import SINGLE
from tests.fuzz.cases import SMALL
from tests.fuzz.targets import DRAWN, TARGETS
from tests.support.strategies import custom_events, events, fields_of

PREFIXES: dict[str, list[bytes]] = {
    "lines": [b"\x02", b"\x01"],
    "source": [b"\x00\x00\x00\x00", b"\x01\x01\x00\x00", b"\x02\x02\x0c\x02ab", b"\x00\x03\x0c\x00"],
    "serve": [bytes(5), b"\x01\x00\x00\x00\x00", b"\x01\x00\x00\x01\x00", b"\x01\x00\x00\x05\x00"],
}
"""First bytes for the inputs of some targets. These targets take their first bytes as decisions."""


def _sent() -> list[bytes]:
    """Return envelopes: the examples of the API document, one for every event class, and 100 random ones."""
    codec = Codec("microseconds")
    found: list[Event] = [event for _, event, _ in SINGLE]
    found += [cls(**fields_of(cls)) for cls in EVENT_TYPES.values()]

    @settings(max_examples=100, derandomize=True, database=None, deadline=None, suppress_health_check=[*HealthCheck])
    @given(events() | custom_events())
    def collect(event: Event) -> None:
        found.append(event)

    collect()
    return list(map(codec.encode, found))


def seeds() -> dict[str, list[bytes]]:
    """Return the first inputs of the targets: a dictionary from the target's name to its inputs."""
    sent = _sent()
    # Targets in `DRAWN` take all bytes as decisions, so their first inputs are random bytes.
    dice = random.Random(0)
    noise = [dice.randbytes(length) for length in range(1, 129)]
    texts = [*sent, *SMALL.values(), b"\n".join(sent[:5])]
    bodies = [*(envelope.partition(b":")[2][:-1] for envelope in sent), *(join([envelope]) for envelope in sent)]
    return {
        name: noise
        if name in DRAWN
        else [
            prefix + text
            for prefix in PREFIXES.get(name, [b""])
            for text in (bodies + texts if name in ("judge", "serve") else texts)
        ]
        for name in TARGETS
    }
