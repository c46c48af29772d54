"""The options, declared once: names, sections, words for the help, defaults, what reads values.

Must not know: where the words came from (command line, environment, file), or what any room does
with its settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pushservice.auth.origins import allowed_origin
from pushservice.config import coercers
from pushservice.config.coercers import Coercer, node_name, one_of, seconds, some_text, whole_number
from pushservice.redis.url import EMBEDDED, redis_address


@dataclass(frozen=True, slots=True)
class Option:
    """One option of `twistd quotepush`.

    `default` is text, as it would be typed; None means that the option has no value unless given.
    `unit` says what a number counts. `section` is where it stands in the configuration file, empty
    for its top. A `flag` takes no value. A `secret` is shown to nobody, and may be given in a file
    that the option `NAME-file` names, whose `content_of` is NAME. The values of a `path` are files
    or directories.
    """

    name: str
    help: str
    default: str | None = None
    coerce: Coercer = some_text
    unit: str | None = None
    placeholder: str = "VALUE"
    repeatable: bool = False
    flag: bool = False
    section: str = ""
    secret: bool = False
    path: bool = False
    content_of: str | None = None

    @property
    def variable(self) -> str:
        """The environment variable that stands in for the option."""
        return f"{VARIABLES}{self.name.upper().replace('-', '_')}"

    @property
    def key(self) -> str:
        """Where it stands in the configuration file: `[section] name`, or `name` at its top."""
        return f"[{self.section}] {self.name}" if self.section else self.name

    @property
    def described(self) -> str:
        """The help with the unit, the variable, whether it may be repeated, and the default."""
        notes = [f"in {self.unit}"] if self.unit else []
        notes.append(f"or the environment's {self.variable}")
        if self.repeatable:
            notes.append("may be given more than once")
        if self.default is not None:
            notes.append(f"default: {self.default}")
        return f"{self.help} ({'; '.join(notes)})"


#: what the names of all environment variables of quotepush begin with
VARIABLES: Final = "QUOTEPUSH_"

#: The file in which all other options may stand; it can't stand in itself.
CONFIG_FILE: Final = Option(
    "config",
    "configuration file in TOML; the environment and the command line go before it",
    placeholder="FILE",
    path=True,
)

_DECLARED: Final[tuple[Option, ...]] = (
    Option("port", "TCP port to listen on", "8008", whole_number(1, 65535), placeholder="PORT"),
    Option("interface", "address to listen on", "0.0.0.0", placeholder="ADDRESS"),  # noqa: S104 - a server's default
    Option(
        "listen",
        "Twisted endpoint to listen on instead of --port and --interface, such as"
        " tcp:8008:interface=127.0.0.1 or unix:/run/quotepush.sock",
        placeholder="ENDPOINT",
        repeatable=True,
    ),
    Option(
        "cert",
        "TLS certificate in PEM, followed by its chain if it has one; of several the one for the"
        " name that a client asks for is used, or else the first",
        placeholder="FILE",
        repeatable=True,
        section="tls",
        path=True,
    ),
    Option(
        "key",
        "private key of --cert, in PEM; of the first --cert, the second, and so on",
        placeholder="FILE",
        repeatable=True,
        section="tls",
        path=True,
    ),
    Option(
        "certs",
        "directory in which a development certificate is made when --cert is not given",
        "certs",
        placeholder="DIR",
        section="tls",
        path=True,
    ),
    Option(
        "cert-watch",
        "look every 10 seconds whether the files of --cert, --key and --client-ca have changed, and"
        " use them",
        flag=True,
        section="tls",
    ),
    Option(
        "plain",
        "serve ws:// without TLS",
        flag=True,
        section="tls",
    ),
    Option(
        "redis",
        "where quotes come from: redis:// or rediss:// (TLS) with [[user]:password@]host[:port],"
        " unix://[[user]:password@]/path, redis+sentinel:// or rediss+sentinel:// with"
        " [[user]:password@]host[:port],host[:port]/service, or embedded for a private"
        " redis-server; several are shards, each of which may bring any symbol",
        EMBEDDED,
        redis_address,
        placeholder="URL",
        repeatable=True,
        section="feed",
        secret=True,
    ),
    Option(
        "redis-ca",
        "certificates that Redis is trusted by over TLS, in PEM; when not given, the system's",
        placeholder="FILE",
        section="feed",
        path=True,
    ),
    Option(
        "redis-cert",
        "certificate to show Redis over TLS, in PEM",
        placeholder="FILE",
        section="feed",
        path=True,
    ),
    Option(
        "redis-key",
        "private key of --redis-cert, in PEM",
        placeholder="FILE",
        section="feed",
        path=True,
    ),
    Option(
        "channels",
        "Redis channel pattern to listen to; the symbol is what its * matched",
        "quote.*",
        placeholder="PATTERN",
        repeatable=True,
        section="feed",
    ),
    Option(
        "subscribe",
        "what to listen to: all, whatever is published, or demand, the channels of watched symbols",
        "all",
        one_of("all", "demand"),
        placeholder="all|demand",
        section="feed",
    ),
    Option(
        "snapshot-hash",
        "Redis hash, symbol to latest payload, that publishers keep: read for first subscribers and"
        " after an outage",
        placeholder="NAME",
        section="feed",
    ),
    Option(
        "stale-after",
        "time without a quote after which the clients of a symbol are told that it is stale",
        None,
        seconds(0.1, 86_400),
        "seconds",
        "SECONDS",
        section="feed",
    ),
    Option(
        "feed-stale-after",
        "time without any quote after which all clients are told that the feed is stale",
        None,
        seconds(0.1, 86_400),
        "seconds",
        "SECONDS",
        section="feed",
    ),
    Option(
        "registry",
        "Redis in which who watches what is kept; when not given, the first of --redis",
        None,
        redis_address,
        placeholder="URL",
        section="registry",
        secret=True,
    ),
    Option(
        "no-registry",
        "do not keep in Redis who watches what",
        flag=True,
        section="registry",
    ),
    Option(
        "registry-prefix",
        "what the registry's keys begin with",
        "quotepush:",
        section="registry",
    ),
    Option(
        "node",
        "this daemon's name in the registry, another for each that runs at a time; when not given,"
        " the host's name and the port",
        None,
        node_name,
        placeholder="NAME",
        section="registry",
    ),
    Option(
        "symbol-regex",
        "take the symbol from the channel's name with this regular expression's group `symbol`",
        placeholder="REGEX",
        section="feed",
    ),
    Option(
        "symbol-field",
        "take the symbol from this field of the JSON payload",
        placeholder="NAME",
        section="feed",
    ),
    Option(
        "compression",
        "compress quotes for clients that offer permessage-deflate, once for all of them: auto,"
        " where that saves more than it costs, or off",
        "auto",
        one_of("auto", "off"),
        placeholder="auto|off",
    ),
    Option(
        "max-connections",
        "clients served at a time; when not given, the process's file limit less a reserve",
        None,
        whole_number(1, 10_000_000),
        "clients",
        "N",
        section="limits",
    ),
    Option(
        "max-per-address",
        "connections from one address (IPv6: from one /64 network) at a time; 0 for any number",
        "1000",
        whole_number(0, 10_000_000),
        "connections",
        "N",
        section="limits",
    ),
    Option(
        "connect-rate",
        "new connections from one address, averaged over 10 seconds; 0 for any number",
        "100",
        whole_number(0, 1_000_000),
        "connections a second",
        "N",
        section="limits",
    ),
    Option(
        "max-handshakes",
        "connections at a time that are not clients yet, or any more: handshakes, pages, closes",
        "1000",
        whole_number(16, 1_000_000),
        "connections",
        "N",
        section="limits",
    ),
    Option(
        "tls-timeout",
        "time for the TLS handshake, from the accept on",
        "10",
        seconds(0.1, 600),
        "seconds",
        "SECONDS",
        section="limits",
    ),
    Option(
        "upgrade-timeout",
        "time for the HTTP request of the opening handshake",
        "10",
        seconds(0.1, 600),
        "seconds",
        "SECONDS",
        section="limits",
    ),
    Option(
        "close-timeout",
        "time a client has to answer a close before the connection is aborted",
        "5",
        seconds(0.1, 600),
        "seconds",
        "SECONDS",
        section="limits",
    ),
    Option(
        "max-symbols",
        "symbols one client may subscribe",
        "1000",
        whole_number(1, 1_000_000),
        "symbols",
        "N",
        section="limits",
    ),
    Option(
        "max-total-symbols",
        "symbols known at a time, watched or quoted; the last values of those nobody watches make"
        " room, oldest first",
        "100000",
        whole_number(1, 100_000_000),
        "symbols",
        "N",
        section="limits",
    ),
    Option(
        "max-message",
        "size of one message from a client",
        "16384",
        whole_number(128, 16 * 1024 * 1024),
        "bytes",
        "N",
        section="limits",
    ),
    Option(
        "message-rate",
        "messages from one client, averaged over 10 seconds; 0 for any number",
        "100",
        whole_number(0, 1_000_000),
        "messages a second",
        "N",
        section="limits",
    ),
    Option(
        "byte-rate",
        "bytes from one client, averaged over 10 seconds; 0 for any number",
        "65536",
        whole_number(0, 1_000_000_000),
        "bytes a second",
        "N",
        section="limits",
    ),
    Option(
        "raw-budget",
        "updates kept for one client's raw subscriptions while it is slow; past it the client is"
        " closed with 4008",
        "1048576",
        whole_number(1024, 1024 * 1024 * 1024),
        "bytes",
        "N",
        section="limits",
    ),
    Option(
        "send-buffer",
        "what the kernel keeps for one client (SO_SNDBUF); 0 leaves it to the kernel",
        "65536",
        whole_number(0, 64 * 1024 * 1024),
        "bytes",
        "N",
        section="limits",
    ),
    Option(
        "stall-timeout",
        "time after which a client is given up that is behind and takes nothing",
        "30",
        seconds(0.1, 86_400),
        "seconds",
        "SECONDS",
        section="limits",
    ),
    Option(
        "ping-interval",
        "time between pings to a client, to find dead connections; 0 for none",
        "20",
        seconds(0, 3600),
        "seconds",
        "SECONDS",
        section="limits",
    ),
    Option(
        "ping-timeout",
        "time for the answer to a ping before the connection is aborted",
        "10",
        seconds(0.1, 3600),
        "seconds",
        "SECONDS",
        section="limits",
    ),
    Option(
        "heartbeat",
        "time between heartbeats on a connection",
        "5000",
        whole_number(100, 600_000),
        "milliseconds",
        "N",
        section="limits",
    ),
    Option(
        "trusted-proxies",
        "address or network of proxies, or unix for those on Unix sockets, which are believed when"
        " they name a client's address: by the PROXY protocol, or in X-Forwarded-For",
        None,
        coercers.network,
        placeholder="NETWORK",
        repeatable=True,
    ),
    Option(
        "admin",
        "where operators ask how it is (/ready, /status, /metrics and others), as HOST:PORT or"
        " unix:/path; off for nowhere",
        "127.0.0.1:8009",
        coercers.admin,
        placeholder="WHERE",
    ),
    Option("no-page", "do not serve the page and quotepush.js on the public port", flag=True),
    Option("demo", "publish a simulated market of 200 symbols through Redis", flag=True),
    Option(
        "demo-rate",
        "quotes the simulated market publishes",
        "200",
        whole_number(1, 100_000),
        "quotes a second",
        "N",
    ),
    Option(
        "auth",
        "who may connect: none, everybody; token, who has a JWT; redis, who has a ticket that is"
        " kept in Redis",
        None,
        one_of("none", "token", "redis"),
        placeholder="none|token|redis",
        section="auth",
    ),
    Option(
        "token-key",
        "key that tokens are verified with: a public key or certificate in PEM, or the secret of"
        " HS256",
        placeholder="FILE",
        section="auth",
        path=True,
    ),
    Option(
        "token-jwks",
        "keys that tokens are verified with, as a JSON Web Key Set; read again when a token names"
        " a key that is not there",
        placeholder="FILE",
        section="auth",
        path=True,
    ),
    Option(
        "token-algorithms",
        "algorithm of tokens that is taken; when not given, those that the keys are for",
        None,
        one_of("HS256", "RS256", "ES256", "EdDSA"),
        placeholder="HS256|RS256|ES256|EdDSA",
        repeatable=True,
        section="auth",
    ),
    Option("token-audience", "what a token's aud must name", placeholder="TEXT", section="auth"),
    Option("token-issuer", "what a token's iss must be", placeholder="TEXT", section="auth"),
    Option(
        "token-leeway",
        "how far the clocks of whoever issues tokens may be off",
        "10",
        seconds(0, 600),
        "seconds",
        "SECONDS",
        section="auth",
    ),
    Option(
        "token-in-url",
        "take tokens from the URL's parameter `token` too, where they are written to logs on the"
        " way",
        flag=True,
        section="auth",
    ),
    Option(
        "auth-timeout",
        "time a client has to authenticate before it is closed with 4004",
        "10",
        seconds(0.1, 600),
        "seconds",
        "SECONDS",
        section="auth",
    ),
    Option(
        "delays",
        "delay that tokens may ask quotes to be sent with; whoever asks for one gets the next"
        " longer",
        None,
        seconds(0.1, 86_400),
        "seconds",
        "SECONDS",
        repeatable=True,
        section="auth",
    ),
    Option(
        "delay-buffer",
        "memory for quotes that wait for --delays; what does not fit is told as gaps",
        "67108864",
        whole_number(65_536, 1024**4),
        "bytes",
        "N",
        section="auth",
    ),
    Option(
        "origins",
        "web page that browsers may connect from, such as https://example.org, or * for any; when"
        " not given, the daemon's own",
        None,
        allowed_origin,
        placeholder="ORIGIN",
        repeatable=True,
        section="auth",
    ),
    Option(
        "require-origin",
        "refuse clients that name no origin, as programs other than browsers do",
        flag=True,
        section="auth",
    ),
    Option(
        "client-ca",
        "certificates of authorities, in PEM; whoever connects must show a certificate of theirs,"
        " whose subject is the user",
        placeholder="FILE",
        section="tls",
        path=True,
    ),
    Option(
        "workers",
        "processes that serve clients, or auto for one a core; 0 serves them in twistd's own"
        " process, without one that watches over it",
        "1",
        coercers.workers,
        "processes",
        "N",
        section="workers",
    ),
    Option("affinity", "keep each worker on a core of its own", flag=True, section="workers"),
    Option(
        "max-worker-age",
        "time after which a worker is replaced, one at a time, a tenth sooner or later",
        None,
        seconds(60, 31_536_000),
        "seconds",
        "SECONDS",
        section="workers",
    ),
    Option(
        "drain-timeout",
        "time a worker that stops or is replaced has to say goodbye to its clients",
        "15",
        seconds(0.1, 3600),
        "seconds",
        "SECONDS",
        section="workers",
    ),
    Option(
        "drain-delay",
        "time at a stop between /ready turning red and the ports closing, for load balancers",
        "0",
        seconds(0, 600),
        "seconds",
        "SECONDS",
        section="workers",
    ),
    Option(
        "log-format",
        "lines for people, or JSON objects",
        "text",
        one_of("text", "json"),
        placeholder="text|json",
        section="log",
    ),
    Option(
        "log-level",
        "how important an event must be to be logged",
        "info",
        one_of("debug", "info", "warn", "error", "critical"),
        placeholder="LEVEL",
        section="log",
    ),
    Option(
        "log-max-size",
        "size at which twistd's --logfile is rotated; 0 for never",
        "10485760",
        whole_number(0, 1024**4),
        "bytes",
        "N",
        section="log",
    ),
    Option(
        "log-keep",
        "rotated logs that are kept",
        "10",
        whole_number(1, 10_000),
        "files",
        "N",
        section="log",
    ),
    Option(
        "client-log-rate",
        "lines about clients that come and go, averaged over 10 seconds; what is over is counted;"
        " 0 for no such lines",
        "20",
        whole_number(0, 100_000),
        "lines a second",
        "N",
        section="log",
    ),
)


def _file_of(option: Option) -> Option:
    """The option that names a file with the value of a secret one."""
    what = "the values" if option.repeatable else "the value"
    lines = ", one a line" if option.repeatable else ""
    return Option(
        f"{option.name}-file",
        f"file with {what} of --{option.name}{lines}; lines that are empty or begin with # are"
        " skipped",
        placeholder="FILE",
        section=option.section,
        path=True,
        content_of=option.name,
    )


OPTIONS: Final[tuple[Option, ...]] = tuple(
    each
    for option in _DECLARED
    for each in ((option, _file_of(option)) if option.secret else (option,))
)
