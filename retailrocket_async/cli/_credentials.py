"""The options for the shop and the API's address, and the key from the environment or a hidden prompt."""

from __future__ import annotations

import getpass
import os
import sys
from typing import TYPE_CHECKING, Annotated, TypeAlias, cast

import typer

from retailrocket_async.cli._terminal import fail

if TYPE_CHECKING:
    from collections.abc import Callable

API_KEY = "RETAILROCKET_API_KEY"
PARTNER_ID = "RETAILROCKET_PARTNER_ID"
BASE_URL = "RETAILROCKET_BASE_URL"
DEFAULT_BASE_URL = "https://apptracking.retailrocket.net/1.0/"

BaseUrl: TypeAlias = Annotated[
    str,
    typer.Option(
        envvar=BASE_URL, help=f"Where the API is; default {DEFAULT_BASE_URL}.", metavar="URL", show_default=False
    ),
]
PartnerId: TypeAlias = Annotated[
    str, typer.Option(envvar=PARTNER_ID, help="The shop's public id. Required.", metavar="ID", show_default=False)
]
AllowInsecureHttp: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--allow-insecure-http",
        help="Allow http:// to another machine, although the key can be read on the way: for test servers only.",
    ),
]


def credentials(partner_id: str) -> tuple[Callable[[], str], str]:
    """Return two values: a function that returns the key, and the shop's id.

    If the key or the id is missing, exit with a sentence and status 2. The key is returned by a function, so that tools
    that print the local variables of a crash do not print the key.
    """
    if not partner_id:
        fail(f"give the shop's public id: --partner-id ID, or the environment variable {PARTNER_ID}")
    key = _api_key()
    return (lambda: key), partner_id


def _api_key() -> str:
    if key := os.environ.get(API_KEY):
        return key
    # If the process was started with a closed standard input, sys.stdin is None.
    if cast("object", sys.stdin) is None or not sys.stdin.isatty():
        fail(f"set the environment variable {API_KEY} (there is no terminal to ask for the key)")
    try:
        # A pasted key often ends with a space, so spaces at both ends are removed.
        return getpass.getpass(f"API key, as {API_KEY} is not set (it does not show): ", stream=sys.stderr).strip()
    except EOFError:
        fail("no key was given")
