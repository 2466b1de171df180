"""The whole emulator as one Starlette application."""

from __future__ import annotations

from starlette.applications import Starlette

from ._control import control_routes
from ._emulator import Emulator
from ._page import page_routes
from ._settings import Settings
from ._tracking import TrackingApi

__all__ = ["app_of", "create_app"]


def create_app(settings: Settings | None = None) -> Starlette:
    """Return an emulator as an application for any ASGI server, its state under ``app.state.emulator``.

    Faults that break the connection work only under `running_emulator`, `emulator_process` and `serve`.

    Args:
        settings: how it behaves; None (default) for ``Settings()``.
    """
    return app_of(Emulator(Settings() if settings is None else settings))


def app_of(emulator: Emulator) -> Starlette:
    """Return the application that shows *emulator* to the world."""
    app = Starlette(routes=[*control_routes(emulator), *page_routes()])
    app.state.emulator = emulator
    # All that is not for control is the API's, so that a request to a wrong URL is judged and recorded too.
    app.router.default = TrackingApi(emulator)
    return app
