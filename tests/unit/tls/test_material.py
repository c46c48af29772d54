"""What certificate and key files hold: read, refused, and handed to other processes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from certificate_makers import (
    material,
    refusal_of,
)

from pushservice.tls.material import Material, read_material


def test_material_is_what_the_files_hold_and_where_they_are(tmp_path):
    certificate, key = tmp_path / "a.crt", tmp_path / "a.key"
    certificate.write_bytes(b"any")
    key.write_bytes(b"thing")
    assert read_material(certificate, key) == Material(certificate, key, b"any", b"thing")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    there, nowhere = tmp_path / "there", tmp_path / "nowhere"
    there.write_bytes(b"")
    missing = "No such file or directory"
    assert refusal_of(read_material, nowhere, there) == (
        f"can't read the certificate {nowhere}: {missing}"
    )
    assert refusal_of(read_material, there, nowhere) == f"can't read the key {nowhere}: {missing}"
    assert refusal_of(read_material, there, tmp_path) == (
        f"can't read the key {tmp_path}: Is a directory"
    )


def test_material_survives_a_journey_as_json_whatever_bytes_it_has():
    odd = Material(Path(os.fsdecode(b"/x/\xff")), Path("/y"), bytes(range(256)), b"k\xc3\xa4y")
    assert Material.from_texts(json.loads(json.dumps(odd.as_texts()))) == odd


@pytest.mark.parametrize("field", Material._fields)
def test_texts_that_are_no_material_are_refused_by_field(field):
    texts = material("a.example").as_texts()
    for wrong in ({**texts, field: 1}, {k: v for k, v in texts.items() if k != field}):
        assert refusal_of(Material.from_texts, wrong) == (
            f"a pair of certificate and key needs a text for {field!r}"
        )


def test_texts_that_are_no_bytes_are_refused_without_showing_them():
    texts = {**material("a.example").as_texts(), "key_pem": "secret€"}
    assert refusal_of(Material.from_texts, texts) == (
        "the texts for /x/a.example/chain.pem are no bytes"
    )


def test_material_never_shows_its_key():
    for text in (repr(material("a.example")), f"{material('a.example')}"):
        assert text == "<Material of /x/a.example/chain.pem and /x/a.example/key.pem>"
