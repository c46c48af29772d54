"""`quotepush record`: what may be typed, and what is said when that makes no sense."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from pushservice.cli.record import record


def run(*words: str):
    return CliRunner().invoke(record, words)


@pytest.mark.parametrize(
    ("words", "said", "status"),
    [
        ([], "Missing argument 'FILE'", 2),
        (["a", "--compress", "lzma"], "--compress", 2),
        (["a", "--count", "0"], "--count", 2),
        (["a", "--redis", "embedded"], "is the daemon's own Redis", 1),
        (["a", "--channels", "quote.["], "--channels", 1),
        (["nowhere/a.jsonl"], "can't write nowhere/a.jsonl: No such file or directory", 1),
    ],
)
def test_a_wrong_use_is_an_error(words, said, status, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(*words)
    assert said in done.stderr
    assert done.exit_code == status
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_is_kept(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text("mine")
    done = run(str(path))
    assert done.exit_code == 1
    assert "exists already: choose another name, or add --overwrite" in done.stderr
    assert path.read_text() == "mine"
