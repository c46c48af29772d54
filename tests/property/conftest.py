"""Hypothesis profiles: a few seconds by default, `--hypothesis-profile=long` for a night."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("quick", max_examples=150, **COMMON)
settings.register_profile("long", max_examples=5000, **COMMON)
settings.load_profile("quick")
