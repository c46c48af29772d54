"""The npm package of the JavaScript client: its files, its types, and that it can be installed."""

from __future__ import annotations

import json
import re
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from npm_packages import CLIENT, node_with_websocket, packed_client, run_npm
from redis_process import RedisServer
from system_harness import Publish, StartDaemon

import pushservice

HERE = Path(__file__).parent / "npm"
FILES = ["LICENSE", "README.md", "package.json", "quotepush.d.ts", "quotepush.js"]
# The compiler's own libraries are not what is tested: checking them takes most of its time.
STRICT = [
    "--strict",
    "--noEmit",
    "--exactOptionalPropertyTypes",
    "--noUncheckedIndexedAccess",
    "--skipDefaultLibCheck",
]
#: What is there at run time, to be compared with what the types say.
ASK_NAMES = """
import * as all from "quotepush";
const own = (made) => Object.getOwnPropertyNames(made.prototype).sort();
const q = new all.Quotepush("ws://127.0.0.1:1/", {page: null,
  WebSocket: class { readyState = 0; close() {} }});
let events = "";
try { q.on("?", () => {}); } catch ({message}) { events = message.split("; there are ")[1]; }
q.close();
console.log(JSON.stringify({exports: Object.keys(all).sort(), methods: own(all.Quotepush),
  events: events.split(", ").sort(), require: import.meta.resolve("quotepush/package.json")}));
"""


def node(client_project: Path, program: str) -> str:
    """Run a module in the project; returns what it printed."""
    file = client_project / "program.mjs"
    file.write_text(program)
    done = subprocess.run(
        [*node_with_websocket(), str(file)],
        cwd=client_project,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check_types(client_project: Path, text: str, *options: str) -> str:
    """What tsc has against a program: nothing, if it is right."""
    file = client_project / "program.ts"
    file.write_text(text)
    tsc = client_project / "node_modules" / ".bin" / "tsc"
    done = subprocess.run(
        [str(tsc), *STRICT, *options, str(file)],
        cwd=client_project,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    return done.stdout + done.stderr


def test_the_package_has_the_daemon_s_version_and_asks_for_nothing():
    package = json.loads((CLIENT / "package.json").read_text("utf-8"))
    assert package["name"] == "quotepush"
    assert package["version"] == pushservice.__version__
    assert package["license"] == "MIT"
    assert not [key for key in package if "ependencies" in key or key in ("scripts", "bin")]
    root = CLIENT.parents[2]
    assert (CLIENT / "LICENSE").read_bytes() == (root / "LICENSE").read_bytes()


def test_the_package_holds_these_files_and_no_others(tmp_path: Path):
    assert sorted(path.name for path in CLIENT.iterdir()) == FILES
    [listed] = json.loads(run_npm("pack", "--dry-run", "--json", CLIENT, directory=tmp_path))
    assert sorted(file["path"] for file in listed["files"]) == FILES
    with tarfile.open(packed_client(tmp_path)) as archive:
        assert sorted(archive.getnames()) == [f"package/{name}" for name in FILES]


def test_the_types_name_what_there_is(client_project: Path):
    there = json.loads(node(client_project, ASK_NAMES))
    types = (CLIENT / "quotepush.d.ts").read_text("utf-8")
    exported = re.findall(r"^export (?:class|function) (\w+)", types, re.MULTILINE)
    assert there["exports"] == sorted(exported)
    (body,) = re.findall(r"^export class Quotepush<.*?^}", types, re.MULTILINE | re.DOTALL)
    methods = re.findall(r"^  (?:get )?(\w+)[(<]", body, re.MULTILINE)
    assert there["methods"] == sorted(methods)
    (events,) = re.findall(
        r"^export interface QuotepushEvents \{.*?^}", types, re.MULTILINE | re.DOTALL
    )
    assert there["events"] == sorted(re.findall(r"^  (\w+): ", events, re.MULTILINE))


@pytest.mark.parametrize("module", ["nodenext", "esnext"])
def test_what_the_types_must_allow_and_forbid(client_project: Path, module: str):
    resolution = ["--module", module, "--target", "es2022"]
    resolution += ["--moduleResolution", "bundler" if module == "esnext" else module]
    assert check_types(client_project, (HERE / "types.ts").read_text("utf-8"), *resolution) == ""


def test_the_types_need_neither_a_browser_s_nor_node_s(client_project: Path):
    program = """
        import {Quotepush} from "quotepush";
        new Quotepush("wss://localhost/").subscribe("AAPL", ({n}) => n.toFixed());
    """
    options = [
        "--module",
        "nodenext",
        "--lib",
        "es2022",
        "--typeRoots",
        str(client_project / "none"),
    ]
    assert check_types(client_project, program, *options) == ""


def test_a_wrong_type_is_found(client_project: Path):
    program = 'import {Quotepush} from "quotepush";\nnew Quotepush().on("gap", 7);\n'
    assert "program.ts(2,27): error TS2345" in check_types(
        client_project, program, "--module", "nodenext"
    )


def receiving(url: str, websocket: str) -> str:
    """A program that prints one quote of S in each of the two ways."""
    return f"""
        import {{createRequire}} from "node:module";
        import {{Quotepush}} from "quotepush";
        const q = new Quotepush({json.dumps(url)}, {{WebSocket: {websocket}}});
        await new Promise((resolve) => q.subscribe("S", ({{data}}) => resolve(console.log(data))));
        for await (const {{symbol, data}} of q.stream("S")) {{
          console.log(symbol, data);
          break;
        }}
        q.close();
    """


@pytest.mark.parametrize(
    "websocket", ['createRequire(import.meta.url)("ws")', "globalThis.WebSocket"], ids=["ws", "own"]
)
def test_the_installed_package_receives_quotes_and_lets_node_end(
    client_project: Path,
    websocket: str,
    daemon: StartDaemon,
    own_redis: Callable[..., RedisServer],
    publish: Publish,
):
    redis = own_redis()
    started = daemon("--plain", redis=redis.url)
    publish(redis, [("quote.S", "7")])
    assert node(client_project, receiving(started.url, websocket)) == "7\nS 7\n"
