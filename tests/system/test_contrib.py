"""The files in contrib work; the tests change only their paths, ports and addresses.

The proxy of docs/moving-from-swoole.rst is tested too.
"""

from __future__ import annotations

import ast
import asyncio
import configparser
import contextlib
import errno
import fnmatch
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import docutils.core
import pytest
from code_blocks import code_blocks
from dockerfile_parse import DockerfileParser
from docutils import nodes
from free_ports import free_port
from system_clients import Client, client_of, open_websocket
from system_harness import (
    DEADLINE,
    TWISTD,
    Address,
    Daemon,
    Publish,
    RedisServer,
    StartDaemon,
    environment,
    poll,
    poll_async,
)
from twisted.scripts import _twistd_unix
from twisted.scripts.twistd import ServerOptions
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import InvalidStatus

from pushservice.config.files import Sources
from pushservice.config.options import CONFIG_FILE, OPTIONS

ROOT: Final = Path(__file__).parents[2]
CONTRIB: Final = ROOT / "contrib"
PROGRAMS: Final = Path(sys.executable).parent

#: Clients' addresses here, none of which is that of a proxy.
CLIENT: Final = "127.0.0.2"
OTHER_CLIENT: Final = "127.0.0.3"
#: Whom the proxies run as, where the tests run as root: nobody.
NOBODY: Final = 65534


def program(name: str) -> str:
    """The path of a program that script/test installs."""
    path = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if path is None:
        pytest.fail(f"{name} is missing: script/test installs it, or apt-get install {name}")
    return path


def changed(name: str, changes: Mapping[str, str]) -> str:
    """The text of a file in contrib with each key of `changes`, which must be in it, replaced."""
    text = (CONTRIB / name).read_text("utf-8")
    for old, new in changes.items():
        assert old in text, f"contrib/{name} has no {old!r}"
        text = text.replace(old, new)
    return text


def run(*command: str | Path, directory: Path, env: dict[str, str] | None = None) -> str:
    """Run a command that must succeed, and return its output."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=directory,
        env=environment(**(env or {})),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


# -- the texts -----------------------------------------------------------------------------------


def test_the_readme_parses_lists_every_file_and_has_no_dead_links():
    text = (CONTRIB / "README.rst").read_text("utf-8")
    document = docutils.core.publish_doctree(
        text, settings_overrides={"report_level": 2, "halt_level": 2, "_disable_config": True}
    )
    for reference in document.findall(nodes.reference):
        target = reference.get("refuri", "")
        assert not target or "://" in target or (CONTRIB / target).exists(), target
    files = {path.name for path in CONTRIB.rglob("*") if path.is_file()} - {"README.rst"}
    assert {name for name in files if f"``{name}``" in text} == files


# -- quotepush.toml ------------------------------------------------------------------------------


def example_file(certs: Path, directory: Path, **more: str) -> Path:
    """The example configuration with certificates that exist."""
    path = directory / "quotepush.toml"
    files = {
        "/etc/quotepush/fullchain.pem": f"{certs}/dev.crt",
        "/etc/quotepush/privkey.pem": f"{certs}/dev.key",
    }
    path.write_text(changed("quotepush.toml", files | more), "utf-8")
    return path


@pytest.fixture
def certs(daemon: StartDaemon, certs_directory: Path) -> Path:
    """The directory of the development certificate, after it was created."""
    if not (certs_directory / "dev.key").exists():
        daemon().stop()
    return certs_directory


def test_the_example_configuration_is_valid(certs: Path, tmp_path: Path) -> None:
    path = example_file(certs, tmp_path)
    said = run(PROGRAMS / "quotepush", "check", "--config", path, directory=tmp_path)
    assert "the configuration is good" in said
    assert "warning" not in said


def commented_settings() -> list[tuple[str, str]]:
    """Each commented-out setting of the example, and its section."""
    section = ""
    found = []
    for line in (CONTRIB / "quotepush.toml").read_text("utf-8").splitlines():
        if line.startswith("["):
            section = line
        elif re.match(r"#[a-z-]+ = ", line):
            found.append((section, line[1:]))
    return found


@pytest.mark.parametrize(("section", "line"), commented_settings())
def test_a_commented_out_setting_of_the_example_is_valid(section, line, tmp_path):
    path = tmp_path / "quotepush.toml"
    path.write_text(f"{section}\n{line}\n")
    settings = Sources({}, str(path), environment={}, directory=tmp_path).load()
    assert settings.errors == ()


def test_the_example_repeats_defaults_that_it_does_not_change():
    text = (CONTRIB / "quotepush.toml").read_text("utf-8")
    table = tomllib.loads(text)
    flat = {key: value for part in (table, *_sections(table)) for key, value in part.items()}
    meant = {"cert", "key", "cert-watch", "workers"}
    by_name = {option.name: option for option in OPTIONS}
    for name, value in flat.items():
        if not isinstance(value, dict) and name not in meant:
            words = value if isinstance(value, list) else [value]
            assert [str(word) for word in words] == [by_name[name].default], name


def _sections(table: dict[str, Any]) -> list[dict[str, Any]]:
    return [value for value in table.values() if isinstance(value, dict)]


# -- systemd -------------------------------------------------------------------------------------


class Unit(configparser.RawConfigParser):
    """A unit file; the last of several equal keys is used."""

    def __init__(self, name: str) -> None:
        super().__init__(strict=False, delimiters="=", comment_prefixes=("#", ";"))
        self.read_string((CONTRIB / name).read_text("utf-8"))

    def optionxform(self, optionstr: str) -> str:
        return optionstr


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units with an existing twistd, adapted to an old systemd as their comment says."""
    changes = {"/opt/quotepush/bin/twistd": TWISTD}
    words = run(program("systemd-analyze"), "--version", directory=tmp_path).split()
    if int(re.findall(r"\d+", words[1])[0]) < 253:
        changes |= {
            "\nType=notify-reload\n": "\n",
            "\n#Type=notify\n": "\nType=notify\n",
            "\n#ExecReload=": "\nExecReload=",
        }
    for name in ("quotepush.service", "quotepush.socket"):
        text = changed(name, changes if name.endswith("service") else {})
        (tmp_path / name).write_text(text, "utf-8")
    return tmp_path


def test_systemd_analyze_accepts_the_units(units: Path) -> None:
    names = ["quotepush.service", "quotepush.socket"]
    paths = [units / name for name in names]
    assert run(program("systemd-analyze"), "verify", *paths, directory=units) == ""


def test_the_service_has_a_low_exposure_level(units: Path) -> None:
    # Of 10.0, where systemd calls up to 2.0 "OK" and 5.0 "medium"; ssh's own unit has 9.6.
    options = ["--offline=true", "--threshold=16", "--no-pager"]
    said = run(
        program("systemd-analyze"),
        "security",
        *options,
        units / "quotepush.service",
        directory=units,
    )
    assert "Overall exposure level" in said


def test_systemd_waits_longer_than_a_stop_takes():
    from pushservice.workers.supervisor import KILL_DELAY

    service = Unit("quotepush.service")["Service"]
    config = tomllib.loads((CONTRIB / "quotepush.toml").read_text("utf-8"))["workers"]
    needed = config["drain-delay"] + config["drain-timeout"] + KILL_DELAY
    assert int(service["TimeoutStopSec"]) >= needed + 10
    assert int(service["WatchdogSec"]) == 30


class FakeSystemd:
    """The socket on which systemd receives notifications of a service."""

    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        self._socket.settimeout(DEADLINE)

    def hear(self, word: str) -> str:
        """Wait for the message that begins with `word`; others before it but states don't count."""
        while not (message := self._socket.recv(4096).decode()).startswith(word):
            assert message.startswith(("STATUS=", "WATCHDOG=")), f"{message!r} instead of {word}"
        return message

    def close(self) -> None:
        self._socket.close()


def environment_of(service: Mapping[str, str], **specifiers: str) -> dict[str, str]:
    words = shlex.split(service["Environment"])
    for specifier, value in specifiers.items():
        words = [word.replace(f"%{specifier}", value) for word in words]
    return dict(word.split("=", 1) for word in words)


def test_the_unit_starts_a_daemon_that_notifies_systemd(
    certs: Path, redis_server: RedisServer, tmp_path: Path, short_directory: Path
) -> None:
    service = Unit("quotepush.service")["Service"]
    assert service["Type"] == "notify-reload"
    port = free_port()
    ports = {"8008": str(port), "0.0.0.0": "127.0.0.1", "127.0.0.1:8009": "off", '"auto"': "2"}
    config = example_file(certs, tmp_path, **ports)
    command = service["ExecStart"].replace("/opt/quotepush/bin/twistd", TWISTD)
    command = command.replace("/etc/quotepush/quotepush.toml", str(config))
    (name, _) = service["LoadCredential"].split(":")
    (tmp_path / name).write_text(f"{redis_server.socket_url}\n")
    systemd = FakeSystemd(short_directory)
    told = {"NOTIFY_SOCKET": systemd.path, "WATCHDOG_USEC": "1000000"}
    variables = environment_of(service, d=str(tmp_path)) | told
    daemon = Daemon(shlex.split(command), port=port, directory=tmp_path, certs=certs, env=variables)
    with contextlib.closing(systemd):
        try:
            systemd.hear("READY=1")
            daemon.wait_for("is served")
            # That of the credential.
            assert redis_server.path in daemon.wait_for("connected for the feed")
            systemd.hear("WATCHDOG=1")
            daemon.process.send_signal(signal.SIGHUP)
            assert re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=\d+", systemd.hear("RELOADING=1"))
            systemd.hear("READY=1")
            # The log is written after systemd is told, and by another process.
            daemon.wait_for("the configuration is loaded")
            daemon.process.send_signal(signal.SIGTERM)
            systemd.hear("STOPPING=1")
        finally:
            status = daemon.stop()
    assert status == 0
    assert "Traceback" not in daemon.output()


def test_the_daemon_serves_on_the_sockets_of_the_socket_unit(
    certs: Path, redis_server: RedisServer, tmp_path: Path, publish: Publish
) -> None:
    listen = re.findall(r"listen = \[.*systemd:.*\]", (CONTRIB / "quotepush.toml").read_text())
    assert listen[0] in (CONTRIB / "quotepush.socket").read_text()
    streams = re.findall(
        r"^ListenStream=(.*)$", (CONTRIB / "quotepush.socket").read_text(), re.MULTILINE
    )
    assert streams == ["0.0.0.0:443", "[::]:443"]
    changes = {f"#{listen[0]}": listen[0], "127.0.0.1:8009": "off"}
    config = example_file(certs, tmp_path, **changes)
    port = free_port()
    command = [
        program("systemd-socket-activate"),
        "-l",
        f"127.0.0.1:{port}",
        "-l",
        f"[::1]:{free_port()}",
    ]
    # systemd itself names each socket by its unit, and Twisted counts on it.
    command += ["--fdname", "quotepush.socket:quotepush.socket"]
    command += ["-E", f"QUOTEPUSH_REDIS={redis_server.socket_url}"]
    command += [TWISTD, "-n", "--pidfile=", "quotepush", "--config", str(config)]
    daemon = Daemon(command, port=port, directory=tmp_path, certs=certs)
    try:
        daemon.wait_for("Listening on [::1]")

        async def talk() -> None:
            # The first client starts the daemon, and waits for it.
            async with client_of(daemon, "S1") as client:
                await asyncio.to_thread(daemon.wait_until_fed)
                publish(redis_server, [("quote.S1", "1")])
                assert (await client.expect("quote"))["d"] == 1

        asyncio.run(talk())
    finally:
        status = daemon.stop()
    assert status == 0
    assert "Traceback" not in daemon.output()


# -- Docker --------------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    with (CONTRIB / "Dockerfile").open("rb") as file:
        parser = DockerfileParser(fileobj=file)
        found = [(each["instruction"], each["value"]) for each in parser.structure]
    return [each for each in found if each[0] != "COMMENT"]


def only(instruction: str) -> str:
    (value,) = (value for name, value in instructions() if name == instruction)
    return value


def given_to_docker(directory: Path) -> Path:
    """A copy of the build context: the files copied by the Dockerfile and not ignored."""
    lines = (CONTRIB / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    ignored = [rule.removeprefix("**/") for rule in rules[1:] if not rule.startswith("!")]
    context = directory / "context"
    context.mkdir()
    for name, value in instructions():
        words = value.split()
        if name != "COPY" or words[0].startswith("--from="):
            continue
        *sources, target = words
        assert allowed >= set(sources), f"COPY {value}: ignored"
        for source in sources:
            there = context / (source if target == "./" else target)
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, there, ignore=shutil.ignore_patterns(*ignored))
            else:
                shutil.copy(ROOT / source, there)
    assert not any(fnmatch.fnmatch(path.name, "*.so") for path in context.rglob("*"))
    return context


def test_a_linter_accepts_the_dockerfile(tmp_path: Path) -> None:
    hadolint = PROGRAMS / "hadolint"
    assert run(hadolint, "--no-color", CONTRIB / "Dockerfile", directory=tmp_path) == ""


def test_the_image_gets_the_sources_of_the_wheel_and_no_generated_files(
    tmp_path: Path,
) -> None:
    context = given_to_docker(tmp_path)
    (command,) = (value for name, value in instructions() if value.startswith("pip wheel"))
    assert command.split()[-1] == "."
    options = ["--no-build-isolation", "--no-index", "--no-deps", "--disable-pip-version-check"]
    made = tmp_path / "wheels"
    run(sys.executable, "-m", "pip", "wheel", *options, "-w", made, context, directory=context)
    (wheel,) = made.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    wanted = {str(path.relative_to(ROOT)) for path in (ROOT / "pushservice").rglob("*.py")}
    wanted |= {"twisted/plugins/quotepush_plugin.py", "pushservice/web/index.html"}
    wanted |= {"pushservice/web/client/quotepush.js", "pushservice/py.typed"}
    assert wanted <= packed


def test_the_image_runs_without_root_and_stops_by_sigterm():
    assert int(only("USER")) > 0
    assert only("STOPSIGNAL") == "SIGTERM"
    stages = [value for name, value in instructions() if name == "FROM"]
    assert [stage.split()[0] for stage in stages] == ["python:3.11", "python:3.11-slim"]
    # The last instruction, so that it applies to the entry point.
    order = [name for name, _ in instructions()]
    assert order.index("USER") > len(order) - 1 - order[::-1].index("RUN")


def test_every_option_set_by_the_image_exists_and_has_a_valid_value():
    words = json.loads(only("ENTRYPOINT"))
    assert words[0] == "twistd"
    parsed = ServerOptions()
    parsed.parseOptions([*words[1:], "--plain"])
    assert parsed.subCommand == "quotepush"
    assert (parsed["nodaemon"], parsed["pidfile"]) == (1, "")
    given = dict(word.split("=", 1) for word in shlex.split(only("ENV")))
    ours = {name: value for name, value in given.items() if name.startswith("QUOTEPUSH_")}
    assert ours
    settings = Sources({}, environment=ours, directory=Path("/")).load()
    assert (settings.errors, settings.warnings) == ((), ())
    assert only("EXPOSE") == next(each.default for each in OPTIONS if each.name == "port")
    # Docker's ten seconds, less a second for the rest of the stop.
    assert float(given["QUOTEPUSH_DRAIN_TIMEOUT"]) <= 9


def test_the_health_check_of_the_image_reports_the_daemon(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    value = only("HEALTHCHECK")
    command = json.loads(value[value.index("CMD") + 3 :])
    port = free_port()
    given = dict(word.split("=", 1) for word in shlex.split(only("ENV")))
    assert f"http://{given['QUOTEPUSH_ADMIN']}/live" in command[-1]
    command = [sys.executable, *command[1:-1], command[-1].replace("8009", str(port))]
    served = daemon("--admin", f"127.0.0.1:{port}", "--workers", "1")
    run(*command, directory=tmp_path)
    served.stop()
    done = subprocess.run(command, capture_output=True, timeout=30, check=False)
    assert done.returncode != 0


# -- proxies -------------------------------------------------------------------------------------


@dataclass
class Proxy:
    """A running proxy and its address for clients."""

    address: Address
    directory: Path


#: Starts a proxy: its command, made of its directory, and the port on which it will listen.
StartProxy = Callable[[Sequence[str], int], Proxy]


@pytest.fixture
def directory(certs: Path, short_directory: Path) -> Path:
    """A directory for a proxy and the daemon's socket, with a certificate."""
    for name in ("dev.crt", "dev.key"):
        shutil.copy(certs / name, short_directory / name)
    short_directory.chmod(0o755)
    for path in (short_directory, *short_directory.iterdir()):
        if os.getuid() == 0:
            os.chown(path, NOBODY, NOBODY)
    return short_directory


@pytest.fixture
def proxy(certs: Path, directory: Path) -> Iterator[StartProxy]:
    """Starts a proxy without root privileges; it ends with the test."""
    with contextlib.ExitStack() as started:

        def start(command: Sequence[str], port: int) -> Proxy:
            output = started.enter_context((directory / "output").open("wb"))
            rights = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
            process = subprocess.Popen(
                command,
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                **(rights if os.getuid() == 0 else {}),
            )
            started.callback(end, process)

            def listens() -> bool:
                said = (directory / "output").read_text()
                assert process.poll() is None, f"{command[0]} ended: {said}"
                with socket.socket() as probe:
                    return probe.connect_ex(("127.0.0.1", port)) == 0

            poll(listens, f"{command[0]} to listen")
            return Proxy(Address(port, certs), directory)

        yield start


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(DEADLINE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(DEADLINE)


@asynccontextmanager
async def client_from(source: str, proxy: Proxy, *symbols: str) -> AsyncIterator[Client]:
    """A client whose own address is `source`."""
    address = {"host": "127.0.0.1", "local_addr": (source, 0)}
    async with client_of(proxy.address, *symbols, **address) as client:
        yield client


async def refused(source: str, proxy: Proxy) -> int:
    """The HTTP status with which one more client from `source` is refused."""
    with pytest.raises(InvalidStatus) as info:
        await open_websocket(proxy.address, host="127.0.0.1", local_addr=(source, 0))
    return info.value.response.status_code


def came_from(*daemons: Daemon) -> list[str]:
    """The addresses of all clients in the daemons' logs."""
    output = "".join(daemon.output() for daemon in daemons)
    return re.findall(r" connected from (\S+) \(", output)


async def quotes_flow(client: Client, publish: Publish, redis: RedisServer, channel: str) -> None:
    publish(redis, [(channel, str(number)) for number in range(100)])
    assert [(await client.expect("quote"))["d"] for _ in range(100)] == list(range(100))


def nowhere(directory: Path) -> str:
    """Settings that keep nginx from using Debian's default paths for temporary files."""
    return "".join(
        f"{kind}_temp_path {directory}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )


def nginx(directory: Path) -> list[str]:
    """The command that runs nginx as the nginx.conf in `directory` says."""
    command = [program("nginx"), "-p", f"{directory}", "-e", f"{directory}/error.log"]
    return [*command, "-c", f"{directory}/nginx.conf", "-g", "daemon off;"]


def test_nginx_forwards_clients_with_their_addresses(
    daemon: StartDaemon,
    proxy: StartProxy,
    directory: Path,
    publish: Publish,
    redis_server: RedisServer,
) -> None:
    path = directory / "quotepush.sock"
    served = daemon(
        *("--plain", "--listen", f"unix:{path}:mode=666", "--trusted-proxies", "unix"),
        *("--channels", "nginx.*", "--max-per-address", "2", "--workers", "1"),
    )
    port = free_port()
    changes = {
        "unix:/run/quotepush/quotepush.sock;": f"unix:{path};",
        "listen 443 ": f"listen 127.0.0.1:{port} ",
        "listen [::]:443 ": f"listen [::1]:{port} ",
        "/etc/ssl/quotes/fullchain.pem": f"{directory}/dev.crt",
        "/etc/ssl/quotes/privkey.pem": f"{directory}/dev.key",
        "/run/nginx.pid": f"{directory}/nginx.pid",
        "/var/log/nginx/": f"{directory}/",
        "http {\n": f"http {{\n{nowhere(directory)}\n",
    }
    (directory / "nginx.conf").write_text(changed("nginx.conf", changes))
    started = proxy(nginx(directory), port)

    async def talk() -> None:
        async with (
            client_from(CLIENT, started, "A") as first,
            client_from(CLIENT, started, "A") as second,
        ):
            await quotes_flow(first, publish, redis_server, "nginx.A")
            assert [(await second.expect("quote"))["d"] for _ in range(100)] == list(range(100))
            assert await refused(CLIENT, started) == 429
            async with client_from(OTHER_CLIENT, started, "B") as third:
                await third.ask({"op": "ping"})
        # Disconnected clients free their places.
        await poll_async(
            lambda: served.output().count(" disconnected after ") >= 3, "log lines about their ends"
        )
        async with client_from(CLIENT, started):
            pass

    asyncio.run(talk())
    assert came_from(served)[:3] == [CLIENT, CLIENT, OTHER_CLIENT]
    assert set(came_from(served)) == {CLIENT, OTHER_CLIENT}


@pytest.mark.parametrize("share", ["100%", "none"])
def test_nginx_splits_clients_between_the_old_script_and_quotepush(
    share: str,
    daemon: StartDaemon,
    proxy: StartProxy,
    directory: Path,
    publish: Publish,
    redis_server: RedisServer,
) -> None:
    text = code_blocks("docs/moving-from-swoole.rst")["both"]
    path, port, old_port = directory / "quotepush.sock", free_port(), free_port()
    (line,) = re.findall(r"^ *10% .*\n", text, re.MULTILINE)
    changes = {
        line: "" if share == "none" else line.replace("10%", share),
        "127.0.0.1:9502": f"127.0.0.1:{old_port}",
        "unix:/run/quotepush/quotepush.sock;": f"unix:{path};",
        "listen 443 ": f"listen 127.0.0.1:{port} ",
        "/etc/ssl/quotes/fullchain.pem": f"{directory}/dev.crt",
        "/etc/ssl/quotes/privkey.pem": f"{directory}/dev.key",
    }
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    (directory / "nginx.conf").write_text(
        f"pid {directory}/nginx.pid; events {{}}\n"
        f"http {{ access_log off; {nowhere(directory)}\n{text}\n}}\n"
    )
    served = daemon(
        *("--plain", "--listen", f"unix:{path}:mode=666", "--trusted-proxies", "unix"),
        *("--channels", "moved.*"),
    )
    started = proxy(nginx(directory), port)

    async def old_script(connection: ServerConnection) -> None:
        """Speaks as the script did, and knows no subprotocol."""
        async for symbol in connection:
            await connection.send(f"old {symbol}")

    async def talk() -> None:
        async with (
            serve(old_script, "127.0.0.1", old_port, compression=None),
            open_websocket(started.address, local_addr=(CLIENT, 0), host="127.0.0.1") as client,
        ):
            assert client.subprotocol is None
            await client.send("A")
            if share == "none":
                assert await asyncio.wait_for(client.recv(), DEADLINE) == "old A"
            else:
                got = asyncio.ensure_future(client.recv())
                while not got.done():
                    publish(redis_server, [("moved.A", "1.50")])
                    await asyncio.wait([got], timeout=0.2)
                assert await got == "1.50"

    asyncio.run(asyncio.wait_for(talk(), 3 * DEADLINE))
    assert came_from(served) == ([] if share == "none" else [CLIENT])


def test_an_address_forged_by_a_client_of_nginx_is_ignored(
    daemon: StartDaemon, directory: Path
) -> None:
    # The header as $proxy_add_x_forwarded_for extends it, sent directly to the daemon.
    served = daemon("--plain", "--trusted-proxies", "127.0.0.1")
    header = {"X-Forwarded-For": "192.0.2.1, 198.51.100.7"}

    async def talk() -> None:
        async with client_of(served, additional_headers=header):
            pass

    asyncio.run(talk())
    served.wait_for("connected from 198.51.100.7")


@dataclass
class Pair:
    """Two daemons behind an haproxy."""

    proxy: Proxy
    daemons: list[Daemon]

    def server_state(self, name: str) -> str:
        """What haproxy thinks of a server: UP, DOWN or others (the management guide's 9.1)."""
        with socket.socket(socket.AF_UNIX) as admin:
            admin.settimeout(DEADLINE)
            admin.connect(str(self.proxy.directory / "admin.sock"))
            admin.sendall(b"show stat\n")
            answer = b"".join(iter(lambda: admin.recv(65536), b"")).decode()
        lines = [line.split(",") for line in answer.splitlines() if line]
        at = lines[0].index("status")
        (state,) = (line[at] for line in lines if line[:2] == ["quotepush", name])
        return state


@pytest.fixture
def pair(daemon: StartDaemon, proxy: StartProxy, directory: Path) -> Pair:
    """Daemons that accept one client per address, behind haproxy."""
    delay = re.findall(r"drain-delay = (\d+)", (CONTRIB / "haproxy.cfg").read_text())
    port = free_port()
    daemons = []
    changes = {
        "bind :443": f"bind 127.0.0.1:{port}",
        "/run/haproxy/admin.sock": f"{directory}/admin.sock",
    }
    for number in (1, 2):
        admin = free_port()
        daemons.append(
            daemon(
                *("--channels", "haproxy.*", "--max-per-address", "1", "--workers", "1"),
                *("--trusted-proxies", "127.0.0.1", "--admin", f"127.0.0.1:{admin}"),
                *("--drain-delay", delay[0]),
            )
        )
        old = f"10.0.0.1{number}:8008 check port 8009"
        changes[old] = f"127.0.0.1:{daemons[-1].port} check port {admin}"
    (directory / "haproxy.cfg").write_text(changed("haproxy.cfg", changes))
    # haproxy does not start after a warning.
    command = [program("haproxy"), "-db", "-dW", "-f", f"{directory}/haproxy.cfg"]
    return Pair(proxy(command, port), daemons)


def test_haproxy_forwards_clients_with_their_addresses_to_the_fewest_connections(
    pair: Pair, publish: Publish, redis_server: RedisServer
) -> None:
    async def talk() -> None:
        async with (
            client_from(CLIENT, pair.proxy, "A") as first,
            client_from(CLIENT, pair.proxy, "A") as second,
        ):
            await quotes_flow(first, publish, redis_server, "haproxy.A")
            assert [(await second.expect("quote"))["d"] for _ in range(100)] == list(range(100))
            # One client on each daemon, and no more from this address.
            assert await refused(CLIENT, pair.proxy) == 429
            async with client_from(OTHER_CLIENT, pair.proxy, "B") as third:
                await third.ask({"op": "ping"})

    asyncio.run(talk())
    for served in pair.daemons:
        assert came_from(served)[0] == CLIENT
    assert sorted(came_from(*pair.daemons)) == [CLIENT, CLIENT, OTHER_CLIENT]


def test_haproxy_drains_a_stopping_daemon_before_its_port_closes(
    pair: Pair,
) -> None:
    leaving, staying = pair.daemons

    async def talk() -> None:
        async with (
            client_from(CLIENT, pair.proxy) as first,
            client_from(CLIENT, pair.proxy) as second,
        ):
            leaving.process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(leaving.wait_for, "told to end: in")
            await poll_async(lambda: pair.server_state("quotes-1") == "DOWN", "haproxy to notice")
            assert leaving.process.poll() is None
            async with client_from(OTHER_CLIENT, pair.proxy) as third:
                await third.ask({"op": "ping"})
            # Its own client gets `bye` after the port is closed.
            ends = {asyncio.create_task(each.closed()): each for each in (first, second)}
            done, waiting = await asyncio.wait(
                ends, timeout=DEADLINE, return_when=asyncio.FIRST_COMPLETED
            )
            assert [task.result() for task in done] == [1001]
            for task in waiting:
                task.cancel()

    asyncio.run(talk())
    assert leaving.wait() == 0
    assert came_from(leaving) == [CLIENT]
    assert came_from(staying) == [CLIENT, OTHER_CLIENT]


# -- operations.rst ------------------------------------------------------------------------------


def operations() -> nodes.document:
    path = ROOT / "docs" / "operations.rst"
    return docutils.core.publish_doctree(
        path.read_text("utf-8"), settings_overrides={"_disable_config": True}
    )


def literals_of_first_column(name: str) -> list[str]:
    """The literals in the first column of a table, without its header."""
    (table,) = (each for each in operations().findall(nodes.table) if name in each["names"])
    (body,) = table.findall(nodes.tbody)
    return [
        each.astext() for row in body.children for each in row.children[0].findall(nodes.literal)
    ]


def texts_of_the_code() -> str:
    """All strings of the package, and texts of Twisted and the system that the log may contain."""
    texts = [os.strerror(errno.EADDRINUSE), Path(_twistd_unix.__file__).read_text("utf-8")]
    for path in (ROOT / "pushservice").rglob("*.py"):
        nodes_of = ast.walk(ast.parse(path.read_text("utf-8")))
        constants = [node.value for node in nodes_of if isinstance(node, ast.Constant)]
        texts += [value for value in constants if isinstance(value, str)]
    return "\n".join(texts)


def test_the_log_lines_in_the_troubleshooting_table_exist_in_the_code():
    known = texts_of_the_code()
    options = {f"--{option.name}" for option in OPTIONS}
    wanted = [text for text in literals_of_first_column("symptoms") if text not in options]
    assert len(wanted) > 15
    for text in wanted:
        for piece in text.split("…"):
            # Variables may stand anywhere between.
            assert piece.strip() in known, f"no {piece!r} of {text!r}"


def test_every_fault_of_ready_is_explained():
    from pushservice.workers import overview, process, single_process

    explained = {text.replace("worker 1", "worker ") for text in literals_of_first_column("faults")}
    said = set()
    for module in (overview, process, single_process):
        tree = ast.parse(Path(module.__file__).read_text("utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name == "faults":
                said |= faults_in(node)
    assert said == explained


def faults_in(function: ast.FunctionDef) -> set[str]:
    """The strings in a function, the fixed parts of formatted ones joined."""
    formatted = [node for node in ast.walk(function) if isinstance(node, ast.JoinedStr)]
    parts = {id(part) for whole in formatted for part in whole.values}
    found = {
        "".join(str(part.value) for part in whole.values if isinstance(part, ast.Constant))
        for whole in formatted
    }
    for node in ast.walk(function):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            found.add(node.value)
    return found - {ast.get_docstring(function), "serving"}


def test_the_documented_configuration_check_works(certs: Path, tmp_path: Path) -> None:
    (block,) = (
        each for each in operations().findall(nodes.literal_block) if "check" in each["names"]
    )
    config = example_file(certs, tmp_path)
    words = shlex.split(block.astext().replace("/etc/quotepush/quotepush.toml", str(config)))
    said = run(PROGRAMS / words[0], *words[1:], directory=tmp_path)
    assert "the configuration is good" in said


def test_the_examples_name_existing_options():
    known = {option.name for option in (*OPTIONS, CONFIG_FILE)}
    for path in filter(Path.is_file, CONTRIB.rglob("*")):
        text = path.read_text("utf-8")
        for name in re.findall(
            r"^#? *#? {4,}([a-z]+(?:-[a-z]+)+|listen|plain|admin) = ", text, re.MULTILINE
        ):
            assert name in known, f"{path.name}: {name}"
        for name in re.findall(r"QUOTEPUSH_([A-Z_]+)", text):
            assert name in ("NAME", "REDIS_FILE") or name.lower().replace("_", "-") in known
