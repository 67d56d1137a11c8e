"""Fixtures of all tests."""

from __future__ import annotations

import copy

import pytest
import tiny


@pytest.fixture(scope="session")
def _trained() -> tiny.Reciter:
    return tiny.trained_gpt2()


@pytest.fixture
def reciter(_trained: tiny.Reciter) -> tiny.Reciter:
    """The trained tiny GPT-2 with its facts: trained once a session, a copy of its own for each test."""
    return _trained._replace(hf=copy.deepcopy(_trained.hf))
