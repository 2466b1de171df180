"""Collects the texts from all places that a secret may reach (sinks), and searches texts for encoded forms of a secret.

Sinks are, for example, logs, tracebacks, spans and what Sentry sends.
"""

from __future__ import annotations

import asyncio
import base64
import copy
import faulthandler
import gc
import io
import json
import logging
import pickle
import pprint
import tempfile
import time
import traceback
import warnings
from collections import defaultdict
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, quote_plus

import httpx
import sentry_sdk
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from rich.console import Console
from rich.traceback import Traceback
from sentry_sdk.transport import Transport

from retailrocket_async import RetailRocketError
from retailrocket_async.otel import OpenTelemetryObserver
from tests.support.internals import is_of_the_client

if TYPE_CHECKING:
    from collections.abc import Generator

    from sentry_sdk.envelope import Envelope

KEY: Final = "q7Zr/4+wé&=%'\"k9"
"""A key with characters that each encoding (URL, JSON, repr, base64) writes in a different way."""

PERSONAL: Final = {
    "session_external_id": "visitor5ba1f2d3",
    "contact_external_id": "contact77c1d4",
    "email": "ivan.petrov@mail.test",
    "phone": "+79161234567",
    "search_phrase": "красный диван",
    "custom_data": "favourite-colour-green",
}

# The names of the sinks. The program that leaks on purpose must put the key into each sink.
LOG, LOG_RECORD, LOG_TRACEBACK, WARNINGS, LOOP = "log", "log record", "log traceback", "warnings", "event loop"
TEXT, REPR, CHAIN, LOCALS, RICH = "error", "error repr", "traceback", "traceback with locals", "rich traceback"
PICKLE, THINGS, ATTRIBUTES, TASKS = "pickled errors", "repr", "attributes", "tasks"
SPANS, METRICS, SENTRY, BREADCRUMBS = "OpenTelemetry spans", "OpenTelemetry metrics", "Sentry", "Sentry breadcrumbs"
CRASH, COMMANDS, OUTPUT = "faulthandler", "command line", "output of the process"
INFO_LOG: Final = "log at INFO and above"
"""The sink that must not contain personal data either."""

EVERY: Final = frozenset(
    {LOG, LOG_RECORD, LOG_TRACEBACK, WARNINGS, LOOP, TEXT, REPR, CHAIN, LOCALS, RICH, PICKLE, THINGS, ATTRIBUTES, TASKS}
    | {SPANS, METRICS, SENTRY, BREADCRUMBS, CRASH, COMMANDS, OUTPUT, INFO_LOG}
)


def disguises(secret: str) -> set[str]:
    """Return the encoded forms in which `secret`, or its first 8 characters, may appear in a text, in lower case."""
    raw = secret.encode()
    found = {secret, quote(secret), quote(secret, safe=""), quote_plus(secret)}
    found |= {secret[:8], quote(secret[:8]), quote(secret[:8], safe="")}
    found |= {json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1], repr(secret)[1:-1], raw.hex()}
    found |= {repr(raw)[2:-1], ascii(secret)[1:-1]}
    for shift in range(3):
        # Within a longer text, base64 writes the secret in one of three ways, which depend on its offset. The first and
        # the last characters depend on the neighbours, so they are cut off.
        encoded = base64.b64encode(bytes(shift) + raw).decode()[4 if shift else 0 :].rstrip("=")[:-2]
        found |= {encoded, encoded.replace("+", "-").replace("/", "_")}
    return {form.casefold() for form in found}


def found_in(text: str, secret: str) -> set[str]:
    """Return the forms of `secret` that `text` contains, each with the text around its first occurrence."""
    text = text.casefold()
    return {
        f"{form} in ...{text[max(0, text.index(form) - 300) : text.index(form) + 100]}..."
        for form in disguises(secret)
        if form in text
    }


def attributes(thing: object) -> str:
    """Return the names and values of an object's attributes, as a debugger shows them.

    Private attributes and properties are included; methods are not.
    """
    told: list[str] = []
    for name in dir(thing):
        if not name.startswith("__"):
            # A property may raise any error.
            with suppress(Exception):
                value = getattr(thing, name)
                told += [] if callable(value) else [f"{name} = {value!r}"]
    return "\n".join(told)


class Sinks:
    """Collects texts in `texts`, a set for each sink."""

    def __init__(self) -> None:
        self.texts: dict[str, set[str]] = defaultdict(set)
        self._drawn: set[object] = set()
        self._looked_at = 0.0

    def put(self, sink: str, *texts: str) -> None:
        """Add texts to a sink."""
        self.texts[sink].update(texts)

    def error(self, error: BaseException) -> None:
        """Add all texts that programs usually print, send or store about an exception and its causes."""
        if self._is_new(("sentry", _way(error))):
            sentry_sdk.capture_exception(error)
        seen: set[int] = set()
        left: list[BaseException | None] = [error]
        while left:
            one = left.pop()
            if one is None or id(one) in seen:
                continue
            seen.add(id(one))
            # `__context__` also has the errors that `from None` hides in a traceback.
            left += [one.__cause__, one.__context__, *(one.exceptions if isinstance(one, BaseExceptionGroup) else ())]
            self._one_error(one)

    def _one_error(self, error: BaseException) -> None:
        self.put(TEXT, str(error))
        self.put(REPR, repr(error), repr(error.args), repr(vars(error)))
        self.put(CHAIN, "".join(traceback.format_exception(error)))
        captured = traceback.TracebackException.from_exception(error, capture_locals=True)
        self.put(LOCALS, "".join(captured.format()))
        if self._is_new(_way(error)):
            everything = {"show_locals": True, "locals_max_length": None, "locals_max_string": None}
            self.put(RICH, _drawn(Traceback.from_exception(type(error), error, error.__traceback__, **everything)))
        if isinstance(error, RetailRocketError):
            self.put(PICKLE, pickle.dumps(error).decode("latin-1"), str(copy.copy(error)))

    def thing(self, *things: object) -> None:
        """Add the str and the repr of objects, and their attributes as a debugger shows them."""
        for thing in things:
            self.put(THINGS, str(thing), repr(thing), pprint.pformat(getattr(thing, "__dict__", None)))
            self.put(ATTRIBUTES, attributes(thing))

    def _is_new(self, drawing: object) -> bool:
        # Rich and Sentry are slow. So of several errors that were raised through the same lines of code, only the first
        # is shown to Rich and Sentry.
        known = drawing in self._drawn
        self._drawn.add(drawing)
        return not known

    def everything_alive(self) -> None:
        """Add the texts of all objects of the package and of all tasks, and the stacks of all threads.

        The function does nothing if its last run was less than a second ago.
        """
        if time.monotonic() - self._looked_at < 1.0:
            return
        for thing in gc.get_objects():
            # URLs are left out: the property `raw_path` of a URL must contain the key, and a debugger would show it.
            if is_of_the_client(thing) and not isinstance(thing, httpx.URL):
                self.thing(thing)
        for task in asyncio.all_tasks():
            stack = io.StringIO()
            task.print_stack(file=stack)
            self.put(TASKS, repr(task), repr(task.get_coro()), stack.getvalue())
        self.crash()
        self._looked_at = time.monotonic()

    def crash(self) -> None:
        """Add the text that faulthandler would write in a crash."""
        with tempfile.TemporaryFile() as file:
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            self.put(CRASH, file.read().decode())

    @contextmanager
    def attached(self) -> Generator[None]:
        """Collect logs, warnings, spans, metrics, and the data for Sentry while the block runs.

        Not all of this instrumentation is removed at the end of the block.
        """
        handler = _Handler(self)
        logging.basicConfig(level=1, handlers=[handler], force=True)
        logging.captureWarnings(capture=True)
        warnings.simplefilter("always")
        spans, metrics = InMemorySpanExporter(), InMemoryMetricReader()
        tracing = TracerProvider()
        tracing.add_span_processor(SimpleSpanProcessor(spans))
        metering = MeterProvider(metric_readers=[metrics])
        self.meter = metering.get_meter("run")
        self.observer = lambda: OpenTelemetryObserver(tracing, metering)
        HTTPXClientInstrumentor().instrument(tracer_provider=tracing, meter_provider=metering)
        # Sentry keeps its defaults, except that all breadcrumbs are collected as they are made: an event contains only
        # the last hundred.
        sentry_sdk.init(
            dsn="https://public@sentry.invalid/1",
            transport=_Envelopes(self),
            traces_sample_rate=1.0,
            before_breadcrumb=self._crumb,
        )
        try:
            with sentry_sdk.start_transaction(name="run", op="test"):
                yield
        finally:
            sentry_sdk.flush()
            self.put(SPANS, *(span.to_json() for span in spans.get_finished_spans()))
            told = metrics.get_metrics_data()
            self.put(METRICS, told.to_json() if told is not None else "")

    def _crumb(self, crumb: dict[str, Any], _: object) -> dict[str, Any]:
        self.put(BREADCRUMBS, repr(crumb))
        return crumb

    def watch_loop(self) -> None:
        """Collect the errors that the running loop reports, and switch on its debug mode."""
        loop = asyncio.get_running_loop()
        loop.set_debug(enabled=True)
        # In debug mode asyncio logs each callback that takes longer than this value; with 0.0 it logs all callbacks.
        loop.slow_callback_duration = 0.0

        def report_error(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            self.put(LOOP, repr(context))
            if isinstance(error := context.get("exception"), BaseException):
                self.error(error)
            loop.default_exception_handler(context)

        loop.set_exception_handler(report_error)


class _Handler(logging.Handler):
    def __init__(self, sinks: Sinks) -> None:
        super().__init__(level=1)
        self._sinks = sinks
        self.setFormatter(logging.Formatter("%(levelname)s %(name)s %(pathname)s %(threadName)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        sinks = self._sinks
        sinks.put(WARNINGS if record.name == "py.warnings" else LOG, record.getMessage())
        text = self.format(record)
        sinks.put(LOG_RECORD, text, repr(vars(record)))
        if record.exc_info or record.stack_info:
            sinks.put(LOG_TRACEBACK, text)
        if record.levelno >= logging.INFO:
            sinks.put(INFO_LOG, text)


class _Envelopes(Transport):
    def __init__(self, sinks: Sinks) -> None:
        super().__init__()
        self._sinks = sinks

    def capture_envelope(self, envelope: Envelope) -> None:
        self._sinks.put(SENTRY, envelope.serialize().decode())


def _way(error: BaseException) -> tuple[object, ...]:
    """Return the code and the line of each frame that an exception passed through."""
    return tuple((frame.f_code, line) for frame, line in traceback.walk_tb(error.__traceback__))


def _drawn(thing: object) -> str:
    console = Console(file=io.StringIO(), width=1000, no_color=True)
    console.print(thing)
    drawn: str = console.file.getvalue()  # type: ignore[attr-defined]
    return drawn
