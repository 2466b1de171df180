"""The files in deploy/ are well-formed and agree with the relay's settings; the tests run no container."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from typer.main import get_command

from retailrocket_async import AsyncTrackingClient, Delivered
from retailrocket_async.cli._app import app
from retailrocket_async.emulator import Settings, running_emulator
from retailrocket_async.relay import MemorySource, MemoryStream, Relay, RelaySettings, serving_health

yaml = pytest.importorskip("yaml")

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
DEFAULTS = RelaySettings(source="unset")
PAGE = (ROOT / "docs" / "how-to" / "deploy.md").read_text("utf-8")

AFTER_THE_GRACE = 15.0
"""Maximum seconds that the relay needs after its grace period to settle messages and disconnect from the broker."""


def documents() -> dict[str, Any]:
    """Return the Kubernetes manifests by their `kind`."""
    found = [document for path in MANIFESTS for document in yaml.safe_load_all(path.read_text("utf-8"))]
    return {document["kind"]: document for document in found}


def pod() -> Any:
    """Return the specification of the relay's pod."""
    return documents()["Deployment"]["spec"]["template"]["spec"]


def container() -> Any:
    """Return the only container of the relay's pod."""
    [only] = pod()["containers"]
    return only


def compose() -> Any:
    """Return the parsed file deploy/compose.yaml."""
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))


def dockerfile() -> list[str]:
    """Return the instructions of deploy/Dockerfile, each in one line."""
    text = re.sub(r"^\s*#.*\n", "", (DEPLOY / "Dockerfile").read_text("utf-8"), flags=re.MULTILINE)
    return [line for line in re.sub(r"\\\n\s*", "", text).splitlines() if line.strip()]


def known_variables() -> set[str]:
    """Return the environment variables that the command `relay` reads."""
    command: Any = get_command(app)
    options = command.commands["relay"].params
    named = {option.envvar for option in options if isinstance(option.envvar, str)}
    # These three variables have no option, because every user of the machine can read a command line.
    return named | {"RETAILROCKET_API_KEY", "RETAILROCKET_RELAY_USER", "RETAILROCKET_RELAY_PASSWORD"}


def seconds(text: str) -> float:
    """Return the seconds of a duration in Docker's notation, for example "10s"."""
    match = re.fullmatch(r"(\d+)s", text)
    assert match, text
    return float(match[1])


class TestDockerfile:
    """Tests of deploy/Dockerfile."""

    def test_lint(self) -> None:
        """If hadolint checks the Dockerfile, it finds nothing."""
        linter = shutil.which("hadolint")
        if linter is None:
            pytest.skip("hadolint is not installed")
        ended = subprocess.run([linter, DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False)
        assert (ended.returncode, ended.stdout) == (0, "")

    def test_not_root_and_no_secrets(self) -> None:
        """The image runs as a user whose id is not 0, and the Dockerfile contains no key, shop or address."""
        assert [line for line in dockerfile() if line.startswith("USER")] == ["USER 10001:10001"]
        text = (DEPLOY / "Dockerfile").read_text("utf-8")
        assert not re.search(r"API_KEY|PARTNER_ID|RELAY_SOURCE|RELAY_PASSWORD|^ARG", text, re.MULTILINE)

    def test_in_stages(self) -> None:
        """The image is built in two stages, and the build context has only the files that are copied into the image."""
        assert sum(line.startswith("FROM") for line in dockerfile()) == 2
        ignored = (DEPLOY / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
        assert "*" in ignored
        copied = {
            name
            for line in dockerfile()
            if (m := re.match(r"COPY ([\w.]+(?: [\w.]+)*) \./?", line))
            for name in m[1].split()
        }
        assert copied == {line[1:] for line in ignored if line.startswith("!")}
        # The nox session that tests the wheel moves the package's folder away, so this folder may be missing.
        assert all((ROOT / name).exists() for name in copied - {"retailrocket_async"})

    def test_extras_exist(self) -> None:
        """Every extra that the image installs is an extra of the package."""
        import tomllib

        extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
        [wanted] = re.findall(r'"\.\[(.+)\]"', (DEPLOY / "Dockerfile").read_text("utf-8"))
        assert set(wanted.split(",")) <= extras.keys()

    def test_port(self) -> None:
        """The image exposes the relay's default health port, and serves health to other hosts, too."""
        assert f"EXPOSE {DEFAULTS.health_port}" in dockerfile()
        assert DEFAULTS.health_host == "127.0.0.1"
        assert any("RETAILROCKET_RELAY_HEALTH_HOST=0.0.0.0" in line for line in dockerfile())

    async def test_health_check(self) -> None:
        """If a relay runs, the image's health check succeeds; otherwise it fails."""
        [line] = [line for line in dockerfile() if line.startswith("HEALTHCHECK")]
        python, *arguments = json.loads(line[line.index("[") :])
        assert python == "/opt/relay/bin/python"
        assert f":{DEFAULTS.health_port}/livez" in arguments[-1]

        async def check(port: int) -> int:
            program = arguments[-1].replace(f":{DEFAULTS.health_port}/", f":{port}/")
            process = await asyncio.create_subprocess_exec(
                sys.executable, *arguments[:-1], program, stderr=asyncio.subprocess.DEVNULL
            )
            return await process.wait()

        client = AsyncTrackingClient("key", "shop")
        relay = Relay(MemorySource(MemoryStream()), client)
        async with serving_health(relay, client, port=0) as url:
            port = int(url.rpartition(":")[2])
            assert await check(port) == 0
        assert await check(port) != 0
        await client.aclose()


class TestCompose:
    """Tests of deploy/compose.yaml."""

    def test_schema(self) -> None:
        """The Compose file is valid according to the schema of the Compose specification."""
        jsonschema = pytest.importorskip("jsonschema")
        schema = json.loads((ROOT / "tests" / "compose-spec" / "compose-spec.json").read_text("utf-8"))
        assert "draft-07" in schema["$schema"]
        jsonschema.Draft7Validator(schema).validate(compose())

    def test_services(self) -> None:
        """The services of the Compose file are a shop, a broker, the relay and the emulator."""
        assert compose()["services"].keys() == {"shop", "redis", "relay", "emulator"}

    def test_variables(self) -> None:
        """The relay's service sets only variables that the relay reads, and it sets all required variables."""
        given = compose()["services"]["relay"]["environment"]
        assert given.keys() <= known_variables()
        assert {"RETAILROCKET_API_KEY", "RETAILROCKET_PARTNER_ID", "RETAILROCKET_RELAY_SOURCE"} <= given.keys()

    def test_time_to_end(self) -> None:
        """Docker kills a stopped relay only after its grace period and the time that it needs afterwards to end."""
        relay = compose()["services"]["relay"]
        assert (
            seconds(relay["stop_grace_period"])
            >= float(relay["environment"]["RETAILROCKET_RELAY_GRACE"]) + AFTER_THE_GRACE
        )

    def test_port(self) -> None:
        """The relay's health port is published only on this machine."""
        assert compose()["services"]["relay"]["ports"] == [f"127.0.0.1:{DEFAULTS.health_port}:{DEFAULTS.health_port}"]

    def test_commands(self) -> None:
        """Each command that a service runs exists, and has all options that the service passes."""
        command: Any = get_command(app)
        for service in ("relay", "emulator"):
            name, *arguments = compose()["services"][service]["command"]
            options = {option for parameter in command.commands[name].params for option in parameter.opts}
            assert {argument for argument in arguments if argument.startswith("--")} <= options

    def test_the_emulator_accepts_the_relay(self) -> None:
        """The relay sends to the emulator's address, and both have the same key and shop."""
        services = compose()["services"]
        relay, emulator = services["relay"]["environment"], services["emulator"]["environment"]
        for name in ("RETAILROCKET_API_KEY", "RETAILROCKET_PARTNER_ID"):
            assert relay[name] == emulator[name]
        address = urlsplit(relay["RETAILROCKET_BASE_URL"])
        command = services["emulator"]["command"]
        port = command[command.index("--port") + 1]
        assert (address.hostname, str(address.port)) == ("emulator", port)
        assert command[command.index("--host") + 1] == "0.0.0.0"
        assert services["emulator"]["ports"] == [f"127.0.0.1:{port}:{port}"]

    @pytest.mark.parametrize("given", [{}, {"RETAILROCKET_API_KEY": "mine", "RETAILROCKET_PARTNER_ID": "my-shop"}])
    def test_an_event_arrives(self, given: dict[str, str]) -> None:
        """If a client has the relay's settings, an emulator with the emulator's settings accepts its events."""
        services = compose()["services"]

        def filled_in(service: str) -> dict[str, str]:
            found = re.compile(r"\$\{(\w+):-([^}]*)\}")
            environment = services[service]["environment"]
            return {
                name: found.sub(lambda match: given.get(match[1]) or match[2], value)
                for name, value in environment.items()
                if name in ("RETAILROCKET_API_KEY", "RETAILROCKET_PARTNER_ID")
            }

        emulator = filled_in("emulator")
        settings = Settings(api_key=emulator["RETAILROCKET_API_KEY"], partner_id=emulator["RETAILROCKET_PARTNER_ID"])
        relay = filled_in("relay")

        async def send() -> object:
            async with (
                running_emulator(settings) as server,
                AsyncTrackingClient(
                    relay["RETAILROCKET_API_KEY"], relay["RETAILROCKET_PARTNER_ID"], base_url=server.url
                ) as client,
            ):
                return await (await client.view(session_external_id="a", product_id=1))

        assert isinstance(asyncio.run(send()), Delivered)

    def test_the_shop_publishes_where_the_relay_reads(self) -> None:
        """The shop publishes to the server and stream from which the relay reads; its program has no syntax error."""
        services = compose()["services"]
        shop, relay = services["shop"]["environment"], services["relay"]["environment"]
        address, _, query = relay["RETAILROCKET_RELAY_SOURCE"].partition("?")
        assert shop["SHOP_REDIS"] == address == relay["RETAILROCKET_RELAY_LIMITER"]
        assert f"stream={shop['SHOP_STREAM']}" in query.split("&")
        compile((DEPLOY / "shop.py").read_text("utf-8"), "shop.py", "exec")


class TestKubernetes:
    """Tests of deploy/kubernetes/."""

    @pytest.mark.parametrize("version", ["1.28", "1.30", "1.33"])
    @pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
    def test_schema(self, path: Path, version: str) -> None:
        """Each manifest is valid according to the schemas of several Kubernetes releases, and has no unknown fields."""
        validator = pytest.importorskip("kubernetes_validate")
        for document in yaml.safe_load_all(path.read_text("utf-8")):
            validator.validate(document, version, strict=True)

    def test_kinds(self) -> None:
        """The manifests are a deployment, a service and a disruption budget, which all select the same pods."""
        found = documents()
        assert found.keys() == {"Deployment", "Service", "PodDisruptionBudget"}
        labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
        assert found["Deployment"]["spec"]["selector"]["matchLabels"] == labels
        assert found["Service"]["spec"]["selector"] == labels
        assert found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
        # A budget that allows no disruption would block every drain of a node.
        assert found["PodDisruptionBudget"]["spec"]["minAvailable"] < found["Deployment"]["spec"]["replicas"]

    def test_probes(self) -> None:
        """The probes request paths, and the port, that the relay serves."""
        [port] = container()["ports"]
        assert port == {"name": "health", "containerPort": DEFAULTS.health_port}
        assert container()["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "health"}
        assert container()["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "health"}
        [service] = documents()["Service"]["spec"]["ports"]
        assert service["targetPort"] == "health"
        annotations = documents()["Deployment"]["spec"]["template"]["metadata"]["annotations"]
        assert annotations["prometheus.io/port"] == str(DEFAULTS.health_port)

    def test_variables(self) -> None:
        """The container sets only variables that the relay reads; values that may be secret come from a Secret."""
        given = {variable["name"]: variable for variable in container()["env"]}
        assert given.keys() <= known_variables()
        for name in ("API_KEY", "PARTNER_ID", "RELAY_SOURCE", "RELAY_LIMITER"):
            assert given[f"RETAILROCKET_{name}"]["valueFrom"]["secretKeyRef"]["name"] == "retailrocket"
        assert given["RETAILROCKET_RELAY_NAME"]["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"
        assert given["RETAILROCKET_RELAY_HEALTH_HOST"]["value"] == "0.0.0.0"
        assert not [document for document in documents().values() if document["kind"] == "Secret"]

    def test_time_to_end(self) -> None:
        """Kubernetes kills a stopped relay only after its grace period and the time that it needs afterwards to end."""
        [grace] = [float(v["value"]) for v in container()["env"] if v["name"] == "RETAILROCKET_RELAY_GRACE"]
        assert pod()["terminationGracePeriodSeconds"] >= grace + AFTER_THE_GRACE

    def test_the_limiter_counts_all_replicas(self) -> None:
        """The limiter's number of replicas is the largest number of pods during a rolling update."""
        deployment = documents()["Deployment"]["spec"]
        [replicas] = [int(v["value"]) for v in container()["env"] if v["name"] == "RETAILROCKET_RELAY_LIMITER_REPLICAS"]
        assert replicas == deployment["replicas"] + deployment["strategy"]["rollingUpdate"]["maxSurge"]

    def test_not_root(self) -> None:
        """The container runs as the image's user and has no privileges."""
        assert pod()["securityContext"]["runAsNonRoot"] is True
        assert f"USER {pod()['securityContext']['runAsUser']}:{pod()['securityContext']['runAsGroup']}" in dockerfile()
        assert container()["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert pod()["automountServiceAccountToken"] is False


def mentioned() -> Iterator[str]:
    """Yield the environment variables that the documentation page in `PAGE` names."""
    yield from re.findall(r"RETAILROCKET_\w+", PAGE)


def test_the_page_names_existing_things() -> None:
    """Every environment variable and every file that the documentation page names exists."""
    assert set(mentioned()) <= known_variables()
    for path in re.findall(r"`(deploy/[\w./-]+)`", PAGE):
        assert (ROOT / path).exists(), path
    for key in re.findall(r"--from-literal=([\w-]+)=", PAGE):
        assert key in (DEPLOY / "kubernetes" / "deployment.yaml").read_text("utf-8")
