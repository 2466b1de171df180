"""If an environment variable is wrong or a proxy refuses, sending is halted, as for a wrong key."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import ssl
from typing import TYPE_CHECKING, Any

import attrs
import httpx
import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from retailrocket_async import (
    Abandoned,
    AsyncTrackingClient,
    Delivered,
    HaltedError,
    Rejected,
    RejectedError,
    RetryPolicy,
    View,
)
from retailrocket_async._http.environment import EnvironmentReader, EnvironmentUnusableError
from tests.support.command import run_command
from tests.support.internals import proxy_found_by
from tests.support.proxy_server import ProxyServer, proxy_server
from tests.support.raw_server import answer, raw_server, tls_server
from tests.support.strategies import PROPERTY

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from retailrocket_async import StateChange

SHOP = "https://shop.invalid/1.0/"
EVENT = View(session_external_id="visitor", product_id=1)
PASSWORD = "pa55word"
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
VARIABLES = (*PROXIES, "NO_PROXY", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the proxy and certificate variables of the machine that runs the tests."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Provide the certificate authority of this module's servers."""
    return trustme.CA()


@pytest.fixture
def trusted(authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> trustme.CA:
    """Provide the authority, and set `SSL_CERT_FILE` to the file with its certificate."""
    path = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(path)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    return authority


class Changes(list["StateChange"]):
    """Collect the state changes of a client."""

    def __init__(self) -> None:
        super().__init__()
        self.halted = asyncio.Event()

    async def hook(self, change: StateChange) -> None:
        """Store a state change, and set `halted` when sending is halted."""
        self.append(change)
        if change.state == "halted":
            self.halted.set()


def client_of(url: str, **options: Any) -> AsyncTrackingClient:
    """Return a client that uses the key "key"."""
    return AsyncTrackingClient("key", "partner", base_url=url, **options)


def complaint() -> str:
    """Read the environment variables for the address `SHOP`, which must raise an error. Return the error's message."""
    with pytest.raises(EnvironmentUnusableError) as caught:
        EnvironmentReader(SHOP, trusted=True).read()
    return str(caught.value)


def proxy_for(url: str) -> str | None:
    """Return the address of the proxy that the environment variables set for `url`, or None if they set no proxy."""
    proxy = EnvironmentReader(url, trusted=True).read().proxy
    return None if proxy is None else proxy.address


BAD_PROXIES = {
    "scheme": (f"ftp://user:{PASSWORD}@host:1", "does not begin with http://"),
    "socks4": ("socks4://host:1", "does not begin with http://"),
    "blank": (f" http://user:{PASSWORD}@host:1", "does not begin with http://"),
    "no host": (f"http://user:{PASSWORD}@:1", "names no host"),
    "nothing": ("http://", "names no host"),
    "blank in host": ("http://my host:1", "names no host"),
    "port too large": ("http://host:65536", "must have a port from 1 to 65535"),
    "port 0": ("http://host:0", "must have a port from 1 to 65535"),
    "port of letters": ("http://host:port", "is no URL"),
    "#": (f"http://user:{PASSWORD}#1@host:1", "is no URL"),
    "/": (f"http://user:{PASSWORD}/1@host:1", "is no URL"),
    "bracket": ("http://[fd00::", "is no URL"),
    "line break": (f"http://user:{PASSWORD}@host:1\n", "holds characters that no URL has"),
    "no character": (f"http://user:{PASSWORD}\udc80@host:1", "holds characters that no URL has"),
    "SOCKS without its package": (f"socks5://user:{PASSWORD}@host:1", r"pip install httpx[socks]"),
    "the same with names": ("socks5h://host:1", r"pip install httpx[socks]"),
}


@pytest.mark.parametrize("variable", PROXIES)
@pytest.mark.parametrize("name", BAD_PROXIES)
def test_a_proxy_that_cannot_be_used(variable: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a proxy variable is wrong, the message names the variable and what to write, but not the password."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    value, words = BAD_PROXIES[name]
    monkeypatch.setenv(variable, value)

    message = complaint()
    assert (True, True) == (message.startswith(f"{variable} "), words in message)
    assert (True, False) == ("write it as http://host:port" in message, PASSWORD in message)


def certificates(kind: str, folder: Path) -> str:
    """Create a file or directory without usable certificates, as `kind` says. Return its path."""
    path = folder / "file.pem"
    if kind == "garbage":
        path.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    elif kind != "missing":
        path.write_text("" if kind == "empty" else "hello\n")
    return str(folder if kind == "directory" else path)


@pytest.mark.parametrize("kind", ["missing", "directory", "empty", "text", "garbage"])
def test_a_certificate_file_that_cannot_be_used(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If `SSL_CERT_FILE` is wrong, the message names the variable and says what to write."""
    monkeypatch.setenv("SSL_CERT_FILE", certificates(kind, tmp_path))

    message = complaint()
    assert message.startswith("SSL_CERT_FILE ")
    assert message.endswith("write the path of a file of certificates in PEM form, or unset it")


@pytest.mark.parametrize("kind", ["missing", "directory", "text"])
def test_a_certificate_directory_that_cannot_be_used(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If `SSL_CERT_DIR` has no usable certificates, an error is raised, because every handshake would fail."""
    monkeypatch.setenv("SSL_CERT_DIR", certificates(kind, tmp_path))

    message = complaint()
    assert message.startswith("SSL_CERT_DIR ")
    assert message.endswith("write the path of a directory that `openssl rehash` has prepared, or unset it")


def test_a_certificate_directory_that_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If `SSL_CERT_DIR` names several directories and one is usable, no error is raised, as in OpenSSL."""
    (tmp_path / "0a1b2c3d.0").touch()
    monkeypatch.setenv("SSL_CERT_DIR", os.pathsep.join([str(tmp_path / "missing"), str(tmp_path)]))

    EnvironmentReader(SHOP, trusted=True).read()


def test_a_key_log_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If `SSLKEYLOGFILE`, which Python itself reads, names no writable file, the message names the variable."""
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "missing" / "keys"))

    assert complaint().startswith("SSLKEYLOGFILE names a file that cannot be written")


def test_plain_http_to_this_host_reads_no_certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If plain http on this host is used, wrong certificate variables cause no error."""
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE"):
        monkeypatch.setenv(name, str(tmp_path / "missing" / "file"))

    assert EnvironmentReader("http://127.0.0.1:1/", trusted=False).read().proxy is None


def test_a_system_without_file_descriptors_is_no_fault(
    trusted: trustme.CA,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If no file descriptor is free, `OSError` is raised, so the client tries again later."""

    def none_left(**_: object) -> ssl.SSLContext:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("ssl.create_default_context", none_left)

    with pytest.raises(OSError, match="Too many open files"):
        EnvironmentReader(SHOP, trusted=True).read()


# --- NO_PROXY ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variable", ["NO_PROXY", "no_proxy"])
@pytest.mark.parametrize("entry", ["fd00::/8", "[::1]", "[::1]:80", "host:port", "a.test b.test", "пример.рф"])
def test_an_entry_that_cannot_be_read_is_left_out(
    variable: str, entry: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If an entry of `NO_PROXY` is wrong, one warning names the entry; the other entries and the proxy are used."""
    monkeypatch.setenv("HTTPS_PROXY", "proxy.test:3128")
    monkeypatch.setenv(variable, f"first.test, {entry} ,last.test")

    reader = EnvironmentReader(SHOP, trusted=True)
    reader.read()
    monkeypatch.setenv("ALL_PROXY", "http://other.test:1")
    reader.read()
    assert "proxy.test:3128" == proxy_for(SHOP)
    assert None is proxy_for("https://first.test/") is proxy_for("https://www.last.test/")
    messages = [record.getMessage() for record in caplog.records]
    assert (variable, entry) == (messages[0].split(":")[0], messages[0].split("'")[1])
    # Each of the four readers logs one warning, however often it reads.
    assert 4 == len(messages)


def test_an_entry_keeps_its_password(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """If an entry of `NO_PROXY` is a URL, no log record contains its password."""
    monkeypatch.setenv("NO_PROXY", f"http://user:{PASSWORD}@host:port")
    EnvironmentReader(SHOP, trusted=True).read()

    assert [False] == [PASSWORD in record.getMessage() for record in caplog.records]


HOSTS = ("shop.test", "www.shop.test", "myshop.test", "127.0.0.1", "10.1.2.3", "[::1]", "[fd00::1]", "localhost")
ENTRIES = (
    *("shop.test", ".shop.test", "*.shop.test", "*shop.test", "shop.test:8443", "test", "SHOP.TEST", "https://", "*"),
    *("https://shop.test", "http://shop.test", "all://*", "127.0.0.1", "10.0.0.0/8", "10.1.2.3/32", "::1", "fd00::1"),
    *("localhost", "LOCALHOST", "127.0.0.1:8443", ":8443", "", " ", "_", "a@b", "a/b"),
)


@PROPERTY
@given(
    host=st.sampled_from(HOSTS),
    port=st.sampled_from(["", ":8443"]),
    scheme=st.sampled_from(["http", "https"]),
    entries=st.lists(st.sampled_from(ENTRIES), max_size=3),
    variables=st.sets(st.sampled_from(["http_proxy", "https_proxy", "all_proxy"])),
)
def test_the_proxy_is_the_one_that_httpx_takes(
    host: str, port: str, scheme: str, entries: list[str], variables: set[str]
) -> None:
    """If any combination of proxy variables is set, the client uses the proxy that httpx would choose."""
    with pytest.MonkeyPatch.context() as patch:
        for number, variable in enumerate(sorted(variables)):
            patch.setenv(variable, f"http://proxy{number}.test:3128")
        patch.setenv("no_proxy", ",".join(entries))
        url = f"{scheme}://{host}{port}/1.0/"

        pool: Any = httpx.AsyncClient(verify=PLAIN)._transport_for_url(httpx.URL(url))._pool  # type: ignore[attr-defined]
        proxy = proxy_found_by(EnvironmentReader(url, trusted=True), url)
        ours = None if proxy is None else proxy.address
        theirs = getattr(pool, "_proxy_url", None)
        assert (None if theirs is None else f"{theirs.host.decode()}:{theirs.port}") == ours


PLAIN = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


# --- a client with a wrong environment variable -----------------------------------------------------------------------


def set_up(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Set a variable to a wrong value. Return its name, and the name of the missing file ("" if no file is missing)."""
    if kind == "file":
        monkeypatch.setenv("SSL_CERT_FILE", str(folder / "later.pem"))
        return "SSL_CERT_FILE", "later.pem"
    monkeypatch.setenv("HTTPS_PROXY", f"socks4://user:{PASSWORD}@host:1")
    return "HTTPS_PROXY", ""


@pytest.mark.parametrize("kind", ["file", "proxy"])
async def test_sending_is_halted_until_it_is_repaired(
    kind: str, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If a variable is wrong, a log record and a state change name it; once it is right, all events are delivered."""
    variable, _ = set_up(kind, tmp_path, monkeypatch)
    changes = Changes()
    async with tls_server(authority) as server:
        async with client_of(server.url, on_state_change=changes.hook) as client:
            receipts = await client.track_many([EVENT] * 50)
            await changes.halted.wait()
            # Another visitor's event need not wait for the events in the buffer.
            stranger = attrs.evolve(EVENT, session_external_id="stranger")
            with pytest.raises(HaltedError, match=variable) as caught:
                await client.send(stranger)
            stats = client.stats()
            authority.cert_pem.write_to_path(tmp_path / "later.pem")
            monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "later.pem"))
            monkeypatch.delenv("HTTPS_PROXY", raising=False)
            outcomes = [await receipt for receipt in receipts]

        assert all(isinstance(outcome, Delivered) and outcome.attempts == 1 for outcome in outcomes)
        assert (0, {}, 50) == (stats.requests, stats.requests_by_status, stats.pending + stats.in_flight)
        assert (False, None, "halted") == (
            caught.value.maybe_recorded,
            caught.value.status,
            getattr(caught.value.outcome, "reason", None),
        )
    assert ["halted", "sending"] == [change.state for change in changes]
    assert (None, f"config: {changes[0].advice}") == (changes[0].status, changes[0].failure)
    assert changes[0].advice.startswith(variable)
    halted = [record for record in caplog.records if "sending is" in record.getMessage()]
    assert [(logging.ERROR, f"sending is halted: {changes[0].advice} (config)")] == [
        (record.levelno, record.getMessage()) for record in halted
    ]
    assert PASSWORD not in caplog.text


async def test_max_halt_ends_events(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """If a halt lasts longer than `max_halt`, events are `Abandoned` and not recorded; the close report says why."""
    variable, _ = set_up("file", tmp_path, monkeypatch)
    client = client_of(SHOP, retry=RetryPolicy(max_halt=0.5))
    outcomes = [await receipt for receipt in await client.track_many([EVENT] * 3)]
    report = await client.aclose()

    for outcome in outcomes:
        assert isinstance(outcome, Abandoned)
        assert ("halted", False, 0) == (outcome.reason, outcome.maybe_recorded, outcome.attempts)
        assert (outcome.failure or "").startswith(f"config: {variable} ")
    assert isinstance(report.error, HaltedError)
    assert (3, 0) == (report.stats.abandoned, report.stats.requests)


async def test_with_outlast_nothing_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """If `outlast` is set, events wait as long as the environment is wrong."""
    set_up("file", tmp_path, monkeypatch)
    changes = Changes()
    client = client_of(SHOP, retry=RetryPolicy(max_halt=0.0, outlast=True), on_state_change=changes.hook)
    receipt = await client.track(EVENT)
    await changes.halted.wait()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(receipt, 0.8)
    await client.aclose(0)

    assert "closed" == getattr(receipt.outcome, "reason", None)


# --- a proxy that refuses ---------------------------------------------------------------------------------------------


@pytest.fixture
def through(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that sets `HTTPS_PROXY` to a proxy."""

    def point(proxy: ProxyServer, password: str = PASSWORD) -> None:
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:{password}@{proxy.address}")

    return point


ONCE = RetryPolicy(max_attempts=1)


@pytest.mark.parametrize("own", [True, False], ids=["our client", "a caller's client"])
@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 405, 407, 451, 501, 505])
async def test_a_proxy_that_refuses_halts(
    status: int,
    own: bool,  # noqa: FBT001 - a parameter of the test
    through: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """If a proxy refuses permanently, sending is halted; the message names the proxy and does not show the password."""
    caplog.set_level(logging.DEBUG)
    changes = Changes()
    async with proxy_server() as proxy:
        proxy.status = status
        through(proxy)
        http_client = None if own else httpx.AsyncClient()
        options: dict[str, Any] = {"http_client": http_client, "retry": RetryPolicy(max_halt=0.0)}
        async with client_of(SHOP, on_state_change=changes.hook, **options) as client:
            with pytest.raises((HaltedError, RejectedError)) as caught:
                await client.send(EVENT)
            outcome = await (await client.track(EVENT))
            state = client.stats().state
        if http_client is not None:
            await http_client.aclose()

        assert ("halted", "halted") == (state, changes[0].state)
        assert f"the proxy {proxy.address} " in changes[0].advice
        if status == 407:
            assert isinstance(outcome, Rejected)
            assert (407, 407, True) == (outcome.status, changes[0].status, "://user:password@" in changes[0].advice)
        else:
            assert isinstance(outcome, Abandoned)
            assert ("halted", False) == (outcome.reason, outcome.maybe_recorded)
            assert f"proxy: {changes[0].advice}" == outcome.failure
            assert (True, True) == (str(status) in changes[0].advice, proxy.address in str(caught.value))
        assert {"shop.invalid:443"} == set(proxy.targets)
    assert (False, False) == (PASSWORD in caplog.text, "dXNlcj" in caplog.text)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 511])
async def test_a_proxy_that_fails_is_an_outage(status: int, through: Callable[..., None]) -> None:
    """If a proxy fails temporarily, requests are retried, and the message names the proxy and the proxy's answer."""
    changes = Changes()
    retry = RetryPolicy(max_attempts=6, initial_backoff=0.01, max_backoff=0.01)
    async with proxy_server() as proxy:
        proxy.status = status
        through(proxy)
        async with client_of(SHOP, on_state_change=changes.hook, retry=retry) as client:
            outcome = await (await client.track(EVENT))

        assert isinstance(outcome, Abandoned)
        failure = f"connect: HTTP {status} from the proxy {proxy.address} to CONNECT"
        assert ("retries_exhausted", False, failure) == (outcome.reason, outcome.maybe_recorded, outcome.failure)
        assert [("down", failure, True)] == [
            (change.state, change.failure, f"the proxy {proxy.address} " in change.advice) for change in changes
        ]


async def test_a_proxy_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """If no proxy listens at the address, the message names the proxy."""
    async with proxy_server() as proxy:
        address = proxy.address
    monkeypatch.setenv("HTTPS_PROXY", address)
    async with client_of(SHOP, retry=ONCE) as client:
        outcome = await (await client.track(EVENT))

    assert f"connect: ConnectError by way of the proxy {address}" == getattr(outcome, "failure", None)


async def test_credentials_that_are_corrected(
    trusted: trustme.CA, through: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    """If the password in the variable is corrected, the next probe succeeds, and every event is delivered."""
    async with tls_server(trusted) as server, proxy_server() as proxy:
        proxy.password = PASSWORD
        through(proxy, "wrong")
        changes = Changes()
        async with client_of(server.url, on_state_change=changes.hook) as client:
            receipts = await client.track_many([EVENT] * 20)
            await changes.halted.wait()
            through(proxy)
            outcomes = [await receipt for receipt in receipts]
            requests = client.stats().requests_by_status

        assert all(isinstance(outcome, Delivered) for outcome in outcomes)
        assert {407: 1, 200: 1} == requests
    assert PASSWORD not in caplog.text


async def test_a_proxy_for_plain_http_that_wants_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a proxy answers 407 to plain http, the message names the proxy and says what to write."""
    changes = Changes()
    async with raw_server() as proxy:
        proxy.always(answer(407))
        address = proxy.url.split("/")[2]
        monkeypatch.setenv("http_proxy", address)
        url = "http://shop.invalid/1.0/"
        async with client_of(url, allow_insecure_http=True, on_state_change=changes.hook) as client:
            with pytest.raises(RejectedError, match="proxy on the way"):
                await client.send(EVENT)

    advice = (
        f"the proxy {address} asks for credentials: write them into http_proxy=http://user:password@{address}, "
        "percent-encoded"
    )
    assert [("halted", 407, advice)] == [(change.state, change.status, change.advice) for change in changes]


# --- check ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def settings() -> dict[str, str]:
    """Return the environment variables that `check` needs."""
    return {"RETAILROCKET_API_KEY": "key", "RETAILROCKET_PARTNER_ID": "partner", "RETAILROCKET_BASE_URL": SHOP}


BROKEN = {
    "HTTPS_PROXY": ("socks4://host:1", "HTTPS_PROXY does not begin with http://"),
    "SSL_CERT_FILE": ("/missing/file", "SSL_CERT_FILE cannot be read (No such file or directory)"),
    "SSLKEYLOGFILE": ("/missing/file", "SSLKEYLOGFILE names a file that cannot be written"),
}


@pytest.mark.parametrize("variable", BROKEN)
def test_check_says_it_in_a_sentence(variable: str, settings: dict[str, str]) -> None:
    """If a variable is wrong, `check` fails with one line that names the variable and what to write."""
    value, words = BROKEN[variable]
    result = run_command("check", env={**settings, variable: value})

    assert (1, "", 1) == (result.exit_code, result.stdout, len(result.stderr.splitlines()))
    assert result.stderr.startswith(f"error: {words}")


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (407, "the proxy on the way asks for credentials: write them into its URL"),
        (403, "the proxy {} refuses to connect to the API (HTTP 403 to CONNECT)"),
        (502, "no answer: check --base-url and the network (connect: HTTP 502 from the proxy {} to CONNECT)"),
    ],
)
async def test_check_names_a_proxy_that_refuses(status: int, words: str, settings: dict[str, str]) -> None:
    """If a proxy refuses, the command `check` fails with one line that names the proxy and the proxy's answer."""
    async with proxy_server() as proxy:
        proxy.status = status
        env = {**settings, "HTTPS_PROXY": f"http://user:{PASSWORD}@{proxy.address}"}
        result = await asyncio.to_thread(run_command, "check", env=env)

        assert (1, 1) == (result.exit_code, len(result.stderr.splitlines()))
        assert result.stderr.startswith(f"error: {words.format(proxy.address)}")
    assert PASSWORD not in result.output


async def test_check_goes_on_without_an_entry(authority: trustme.CA, settings: dict[str, str], tmp_path: Path) -> None:
    """If an entry of `NO_PROXY` is wrong, `check` prints one warning and still checks the key."""
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    async with tls_server(authority) as server:
        server.in_turn(answer(400), answer(401))
        env = {**settings, "RETAILROCKET_BASE_URL": server.url, "NO_PROXY": "fd00::/8"}
        env["SSL_CERT_FILE"] = str(tmp_path / "authority.pem")
        result = await asyncio.to_thread(run_command, "check", env=env)

    assert (0, 1) == (result.exit_code, result.stderr.count("warning: NO_PROXY: left out 'fd00::/8'"))
    assert result.stdout.startswith("ok: the API takes this key")


@pytest.mark.parametrize("error", [RuntimeError("apiKey=key"), OSError(28, "No space"), BaseException("apiKey=key")])
@pytest.mark.parametrize("command", ["check", "send"])
def test_no_command_shows_a_traceback(
    command: str, error: BaseException, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a command meets any error, it prints one sentence with the error's type and place, but not its text."""

    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(f"retailrocket_async.cli._{command}.AsyncTrackingClient", broken)
    result = run_command(command, *(["-"] if command == "send" else []), env=settings)

    assert (1, True) == (result.exit_code, type(error).__name__ in result.stderr.splitlines()[-1])
    assert (False, False) == ("Traceback" in result.output, "apiKey" in result.output)
