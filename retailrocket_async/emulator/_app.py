"""Makes the Starlette application of an emulator, which serves the API, the control side and the page."""

from __future__ import annotations

from starlette.applications import Starlette

from ._control import control_routes
from ._emulator import Emulator
from ._page import page_routes
from ._settings import Settings
from ._tracking import TrackingApi

__all__ = ["app_of", "create_app"]


def create_app(settings: Settings | None = None) -> Starlette:
    """Return an emulator as an application for any ASGI server; ``app.state.emulator`` is its `Emulator`.

    Faults that break the connection work only under `running_emulator`, `emulator_process` and `serve`.

    Args:
        settings: how the emulator behaves; None (default) for ``Settings()``.
    """
    return app_of(Emulator(Settings() if settings is None else settings))


def app_of(emulator: Emulator) -> Starlette:
    """Return the application that serves *emulator*."""
    app = Starlette(routes=[*control_routes(emulator), *page_routes()])
    app.state.emulator = emulator
    # All other paths belong to the API, so that a request to a wrong URL is judged and recorded too.
    app.router.default = TrackingApi(emulator)
    return app
