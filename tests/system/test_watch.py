"""`quotepush watch` with a real daemon: lines in a pipe, and a table in a real terminal."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator

import pytest
from free_ports import free_port
from shell import QUOTEPUSH, Command
from system_harness import Daemon, environment, poll
from terminal import Terminal

PREFIX = "watch"


@pytest.fixture(scope="module")
def served(module_daemon) -> Daemon:
    """A daemon over TLS, whose symbols are published on watch.SYMBOL."""
    return module_daemon("--channels", f"{PREFIX}.*")


@pytest.fixture
def watch(tmp_path) -> Iterator:
    """watch(*words): a Command that watches, ended at the end."""
    commands: list[Command] = []

    def start(*words: str, **env: str) -> Command:
        commands.append(Command("watch", *words, directory=tmp_path, **env))
        return commands[-1]

    yield start
    for command in commands:
        if command.process.poll() is None:
            command.process.kill()
        command.wait()
        assert "Traceback" not in command.err, command.err


@pytest.fixture
def terminal(tmp_path) -> Iterator:
    """terminal(*words): `quotepush watch` in a terminal."""
    terminals: list[Terminal] = []

    def start(*words: str, **size: int) -> Terminal:
        terminals.append(Terminal([QUOTEPUSH, "watch", *words], tmp_path, **size))
        return terminals[-1]

    yield start
    for each in terminals:
        each.close()
        assert "Traceback" not in each.seen, each.seen


def trusted(served: Daemon, *words: str) -> list[str]:
    return [served.url, *words, "--ca", str(served.certs / "dev.crt")]


def lines(command: Command) -> list[dict]:
    return [json.loads(line) for line in command.out.splitlines()]


def publish_until(publish, redis_server, symbol: str, payload: str, condition) -> None:
    """Publish a payload again and again until it has had its effect."""

    def published() -> bool:
        publish(redis_server, [(f"{PREFIX}.{symbol}", payload)])
        return condition()

    poll(published, f"{payload} of {symbol} to arrive")


# -- lines -----------------------------------------------------------------------------------------


def test_each_quote_is_a_line_with_its_payload_byte_for_byte(served, watch, publish, redis_server):
    publish(redis_server, [(f"{PREFIX}.BYTES", '{"last":10.50}')])
    command = watch(*trusted(served, "BYTES", "--json", "--count", "4"))
    poll(lambda: command.out.count(b"\n") == 1, "the snapshot")
    publish(
        redis_server,
        [(f"{PREFIX}.BYTES", each) for each in ('{"last": 1E2, "x":[]}', "10.500", '"closed"')],
    )
    assert command.wait() == 0
    first, *rest = command.out.splitlines()
    assert first.endswith(b'"d":{"last":10.50}}')
    assert [line[line.index(b'"d":') :] for line in rest] == [
        b'"d":{"last": 1E2, "x":[]}}',
        b'"d":10.500}',
        b'"d":"closed"}',
    ]
    assert [line["ev"] for line in lines(command)] == ["snapshot", "quote", "quote", "quote"]
    assert [line["n"] for line in lines(command)] == list(range(1, 5))
    assert command.err == ""


def test_raw_lines_are_the_payloads(served, watch, publish, redis_server):
    publish(redis_server, [(f"{PREFIX}.RAW", "10.50")])
    command = watch(*trusted(served, "RAW", "--raw", "--count", "1"))
    assert command.wait() == 0
    assert command.out == b"10.50\n"


def test_what_is_no_terminal_gets_lines_and_is_told(served, watch, publish, redis_server):
    publish(redis_server, [(f"{PREFIX}.PIPE", "1")])
    command = watch(*trusted(served, "PIPE", "--count", "1"))
    assert command.wait() == 0
    assert lines(command)[0]["d"] == 1
    assert command.err == (
        "the output is not a terminal: printing a line of JSON for each quote, as --json\n"
    )


def test_a_pipe_that_is_closed_ends_it_quietly(served, publish, redis_server, tmp_path):
    words = " ".join(trusted(served, "HEAD", "--json"))
    with subprocess.Popen(
        ["bash", "-c", f"set -o pipefail; {QUOTEPUSH} watch {words} | head -1"],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as piped:
        publish_until(publish, redis_server, "HEAD", "1", lambda: piped.poll() is not None)
        assert (piped.returncode, piped.stderr.read()) == (0, b"")


def test_what_is_fed_comes_out_of_the_pipe(own_redis, daemon, watch, tmp_path):
    redis = own_redis()
    started = daemon("--plain", redis=redis.url)
    feed = Command(
        *("feed", "--redis", redis.url, "--rate", "100", "--symbols", "AAPL,MINE"),
        directory=tmp_path,
    )
    command = watch(started.url, "AAPL", "MINE", "--json", "--count", "60")
    assert command.wait() == 0
    assert feed.interrupt() == 0
    found = lines(command)
    assert {line["s"] for line in found} == {"AAPL", "MINE"}
    assert all(line["d"]["symbol"] == line["s"] for line in found)
    for symbol in ("AAPL", "MINE"):
        numbers = [line["n"] for line in found if line["s"] == symbol]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_an_interrupt_ends_it_with_status_0(served, watch, publish, redis_server):
    command = watch(*trusted(served, "STOP", "--json"))
    publish_until(publish, redis_server, "STOP", "1", lambda: command.out)
    assert command.interrupt() == 0
    assert command.err == ""


def test_time_ends_it_with_status_0(served, watch):
    command = watch(*trusted(served, "NEVER", "--json", "--seconds", "1.5"))
    assert command.wait() == 0
    assert (command.out, command.err) == (b"", "")


def test_without_symbols_it_is_what_was_quoted_last(served, watch, publish, redis_server):
    publish(redis_server, [(f"{PREFIX}.LATEST", "5")])
    command = watch(*trusted(served, "--json", "--count", "1"))
    assert command.wait() == 0
    assert re.search(r"taking the \d+ that were quoted last", command.err)


# -- refusals --------------------------------------------------------------------------------------


def test_a_certificate_that_is_not_trusted_is_named_with_what_to_type(served, watch):
    for words in ([served.url, "A", "--json"], [served.url]):
        command = watch(*words)
        assert command.wait() == 1
        assert "the certificate of localhost is refused" in command.err
        assert "--ca" in command.err
        assert "--insecure" in command.err


def test_nobody_has_to_be_trusted(served, watch, publish, redis_server):
    publish(redis_server, [(f"{PREFIX}.TRUST", "1")])
    assert watch(served.url, "TRUST", "--json", "--count", "1", "--insecure").wait() == 0


def test_a_daemon_that_was_never_there_is_status_1(watch):
    command = watch(f"ws://127.0.0.1:{free_port()}", "A", "--json", "--seconds", "1")
    assert command.wait() == 1
    assert "Connection refused, again in" in command.err
    assert command.err.endswith("Error: there was no connection\n")


def test_an_address_that_is_none_is_status_2(watch):
    command = watch("localhost:8008", "A")
    assert command.wait() == 2
    assert 'an address is "wss://HOST:PORT/"' in command.err


@pytest.fixture(scope="module")
def guarded(module_daemon, tmp_path_factory) -> tuple[Daemon, str, str]:
    """A daemon that asks for tokens, one that is good for A alone, and one that is not."""
    directory = tmp_path_factory.mktemp("keys")

    def token(*words: str) -> str:
        done = subprocess.run(
            [QUOTEPUSH, "token", *words],
            cwd=directory,
            env=environment(),
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return done.stdout.strip()

    (directory / "verify.pem").write_text(token("key", "sign.pem") + "\n")
    token("key", "other.pem")
    good = token("make", "--key", "sign.pem", "--symbols", "A")
    bad = token("make", "--key", "other.pem")
    options = ["--channels", f"{PREFIX}.*", "--auth", "token"]
    started = module_daemon(*options, "--token-key", str(directory / "verify.pem"))
    return started, good, bad


def test_a_token_that_is_refused_is_status_1_and_shown_to_nobody(guarded, watch):
    served, _, bad = guarded
    command = watch(*trusted(served, "A", "--json"), QUOTEPUSH_TOKEN=bad)
    assert command.wait() == 1
    assert "--token-file" in command.err
    assert bad not in command.err
    command = watch(*trusted(served, "A", "--json"))
    assert command.wait() == 1
    assert "the server asks for a token" in command.err


def test_symbols_that_a_token_does_not_allow_are_named(guarded, watch, publish, redis_server):
    served, good, _ = guarded
    publish(redis_server, [(f"{PREFIX}.A", "1")])
    command = watch(*trusted(served, "A", "B", "--json", "--count", "1"), QUOTEPUSH_TOKEN=good)
    assert command.wait() == 0
    command = watch(*trusted(served, "B", "--json"), QUOTEPUSH_TOKEN=good)
    assert command.wait() == 1
    assert "refused: B: your token does not cover this symbol (409)" in command.err
    assert good not in command.err


# -- a terminal ------------------------------------------------------------------------------------


def test_the_table_follows_the_quotes_and_q_leaves_all_as_it_was(
    served, terminal, publish, redis_server
):
    publish(
        redis_server, [(f"{PREFIX}.TTY", '{"last":10.50,"bid":10.49,"ask":10.51,"open":10.00}')]
    )
    seen = terminal(*trusted(served, "TTY"), width=100)
    seen.wait_for(
        "SYMBOL", "TTY", "10.50", "+0.50", "+5.00%", "10.49", "10.51", "● open", "feed up"
    )
    assert not seen.is_as_before
    publish(redis_server, [(f"{PREFIX}.TTY", '{"last":10.60,"open":10.00}')])
    # Its colours change: white on green at first, green then.
    seen.wait_for("10.60 ▲", "[1;37;42m")
    there = len(seen.seen)
    publish(redis_server, [(f"{PREFIX}.TTY", '{"last":10.55,"open":10.00}')])
    seen.wait_for("10.55 ▼", "[1;37;41m", after=there)
    seen.press(b"q")
    assert seen.wait() == 0
    assert seen.is_as_before
    seen.wait_for("\x1b[?1049l", "\x1b[?25h", "3 quotes, 0 merged, 0 gaps")


def test_ctrl_c_leaves_all_as_it_was_with_status_0(served, terminal):
    seen = terminal(*trusted(served, "CTRLC"))
    seen.wait_for("CTRLC", "● open")
    seen.press(b"\x03")
    assert seen.wait() == 0
    assert seen.is_as_before
    seen.wait_for("\x1b[?1049l", "\x1b[?25h")


def test_ctrl_z_gives_the_terminal_back_and_fg_takes_it_again(served, tmp_path):
    shell = Terminal(["bash", "--norc", "-i"], tmp_path)
    try:
        shell.press(f"{QUOTEPUSH} watch {' '.join(trusted(served, 'CTRLZ'))}\r".encode())
        shell.wait_for("\x1b[?1049h", "CTRLZ", "● open")
        there = len(shell.seen)
        shell.press(b"\x1a")
        shell.wait_for("\x1b[?1049l", "\x1b[?25h", "Stopped", after=there)
        there = len(shell.seen)
        shell.press(b"fg\r")
        shell.wait_for("\x1b[?1049h", "● open", after=there)
        # Keys are read as they are pressed again.
        shell.press(b"q")
        shell.wait_for("\x1b[?1049l", "0 quotes, 0 merged", after=there)
        there = len(shell.seen)
        shell.press(b"echo status $?\r")
        shell.wait_for("status 0", after=there)
    finally:
        shell.close()


def test_the_table_follows_the_terminals_size(served, terminal, publish, redis_server):
    publish(redis_server, [(f"{PREFIX}.SIZE", '{"last":1,"bid":2,"ask":3,"volume":4,"open":5}')])
    seen = terminal(*trusted(served, "SIZE"), width=100)
    seen.wait_for("VOLUME", "BID")
    there = len(seen.seen)
    seen.resize(40, 10)
    seen.wait_for("q quits", after=there)
    poll(lambda: last_picture(seen) and "VOLUME" not in last_picture(seen), "fewer columns")
    assert "PRICE" in last_picture(seen)


def last_picture(seen: Terminal) -> str:
    """What was written from the last return to the top on, and is whole."""
    pictures = seen.seen.split("\x1b[H")
    return pictures[-2] if len(pictures) > 2 else ""


def test_arrows_scroll(served, terminal):
    symbols = [f"ROW{n:02}" for n in range(40)]
    seen = terminal(*trusted(served, *symbols), height=20)
    seen.wait_for("1–15 of 40")
    seen.press(b"\x1b[B")
    seen.wait_for("2–16 of 40")
    seen.press(b"\x1b[6~")
    seen.wait_for("16–30 of 40")
    seen.press(b"k\x1b[5~")
    seen.wait_for("1–15 of 40", after=seen.seen.index("16–30 of 40"))


def test_a_lost_daemon_is_told_and_come_back_to(daemon, terminal, own_redis):
    redis = own_redis()
    started = daemon("--plain", redis=redis.url)
    seen = terminal(started.url, "LOST", width=100)
    seen.wait_for("● open", "feed up")
    redis.stop()
    seen.wait_for("feed down")
    started.stop()
    seen.wait_for("● waiting")


def test_a_refusal_leaves_the_terminal_as_it_was_with_status_1(served, terminal):
    seen = terminal(served.url, "A")
    assert seen.wait() == 1
    assert seen.is_as_before
    seen.wait_for("Error: the certificate of localhost is refused", "\x1b[?25h")


def test_a_terminal_that_can_nothing_gets_lines(served, tmp_path):
    with subprocess.Popen(
        [QUOTEPUSH, "watch", *trusted(served, "DUMB", "--seconds", "1")],
        cwd=tmp_path,
        env=environment(TERM="dumb"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert b"not a terminal" in process.communicate(timeout=30)[1]
