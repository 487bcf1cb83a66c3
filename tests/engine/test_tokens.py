"""Where the token is looked for; a cluster that asks for one is started in `test_jobs.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpo.engine.tokens import asks_for_token, authorization, check_admission, find_token
from hpo.errors import HpoError


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_a_token_is_looked_for_as_ray_does(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_token() is None
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("in-home\n")
    assert find_token() == "in-home"
    other = home / "other"
    other.write_text("in-file")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(other))
    assert find_token() == "in-file"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "in-variable")
    assert find_token() == "in-variable"


def test_a_token_is_the_rule(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert asks_for_token()
    with pytest.raises(HpoError, match=r"(?s)x\.yaml: .*this machine has none.*copy ~/\.ray/auth_token"):
        authorization("x.yaml")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    assert authorization("x.yaml") == {"authorization": "Bearer secret"}
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert authorization("x.yaml") == {}


def test_a_token_is_not_sent_in_clear(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    for url in ("http://10.0.0.5:8265", "http://head:8265", "http://localhost.example.org"):
        with pytest.raises(HpoError, match=r"(?s)x: the token would go there unencrypted.*ssh -N -L 8265:127\.0\.0\.1"):
            authorization("x", url=url)
    for url in ("http://127.0.0.1:8265", "http://localhost:1", "http://[::1]:8265", "https://head:8265"):
        assert authorization("x", url=url)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert authorization("x", url="http://10.0.0.5:8265") == {}


def test_a_token_that_cannot_be_read(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "missing"))
    with pytest.raises(HpoError, match=r"(?s)RAY_AUTH_TOKEN_PATH: the token cannot be read.*unset it"):
        find_token()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "auto"])
def test_nobody_answers(address: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(HpoError, match=rf"(?s)--address {address}: no Ray cluster answers.*ray up"):
        check_admission(address)
