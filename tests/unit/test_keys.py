"""API keys: the file, the command that writes it, and what a key opens."""

from __future__ import annotations

import hmac
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from llamaswap_py.api.auth import Access
from llamaswap_py.config.api_keys import (
    RIGHTS,
    ApiKey,
    KeyRing,
    hash_secret,
    parse_keys,
    with_rights,
)
from llamaswap_py.config.load import read_keys
from llamaswap_py.config.parse import load_config
from llamaswap_py.errors import ApiError, ConfigError
from llamaswap_py.proxy.messages import RequestHead

GOOD = hash_secret(b"secret")


def lswap(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llamaswap_py", "key", *words]
    # No lswap that runs here is to be told of these keys.
    env = {**os.environ, "XDG_RUNTIME_DIR": str(Path(__file__).parent)}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=90, env=env)


def head(**headers: str) -> RequestHead:
    listed = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return RequestHead("GET", "/", "/", "", "1.1", listed, keep_alive=True)


def test_a_key_is_made_listed_and_revoked_and_only_its_hash_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    made = lswap(
        "new",
        "laptop",
        "--file",
        str(file),
        "--model",
        "a",
        "--max-in-flight",
        "2",
        "--right",
        "pin",
    )
    assert made.returncode == 0, made.stderr
    secret = made.stdout.strip()
    assert secret.startswith("lsk-")
    assert f"keys: {{file: {file}}}" in made.stderr
    assert secret not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.write_text("# mine\n" + file.read_text())
    boss = json.loads(lswap("new", "boss", "--kind", "admin", "--file", str(file), "--json").stdout)
    assert file.read_text().startswith("# mine\n"), "comments stay"
    keys = read_keys(file)
    found = keys.find(secret.encode())
    assert found is not None
    assert (found.name, found.is_admin, found.models, found.max_in_flight) == (
        "laptop",
        False,
        ("a",),
        2,
    )
    assert found.rights == ("pin",)
    assert found.may("pin")
    assert not found.may("unload")
    admin = keys.find(boss["key"].encode())
    assert admin is not None
    assert admin.is_admin
    assert admin.may_use("anything")
    listed = lswap("list", "--file", str(file))
    assert "laptop" in listed.stdout
    assert "sha256" not in listed.stdout
    assert lswap("revoke", "laptop", "--file", str(file)).returncode == 0
    assert read_keys(file).find(secret.encode()) is None


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("new", "a/b"), "a key cannot be named 'a/b'"),
        (("new", "x", "--kind", "root"), "'root' is not a kind of key - write inference or admin"),
        (("new", "x", "--right", "load"), "'load' is not a right - known: unload, ttl, pin, slots"),
        (("revoke", "nobody"), "there is no key named 'nobody' - `lswap key list` shows"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, words: tuple[str, ...], says: str) -> None:
    done = lswap(*words, "--file", str(tmp_path / "keys.yaml"))
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("keys: [{name: a, hash: hunter2}]", "has no hash of the form"),
        ("keys: [{name: a}]", "hash"),
        (f"keys: [{{name: a, hash: '{GOOD}', kind: root}}]", "root"),
        (f"keys: [{{name: a, hash: '{GOOD}', colour: red}}]", "colour"),
        (f"keys: [{{name: a, hash: '{GOOD}'}}, {{name: a, hash: '{GOOD}'}}]", "two keys are named"),
        ("keys: [", "keys.yaml:1: this is not YAML"),
        ("- a", "keys.yaml"),
    ],
)
def test_a_wrong_file_is_refused_and_shows_no_secret(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        parse_keys(text, "keys.yaml")
    assert "hunter2" not in str(caught.value)


def test_an_empty_or_missing_file_locks_nobody_out_unsaid(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lswap key new"):
        read_keys(tmp_path / "none.yaml")
    (tmp_path / "empty.yaml").write_text("keys: []\n")
    with pytest.raises(ConfigError, match="nobody could use lswap"):
        read_keys(tmp_path / "empty.yaml")


def ring(**changes: object) -> Access:
    ring = KeyRing([ApiKey(name="k", hash=GOOD, **changes)])  # type: ignore[arg-type]
    return Access(ring)


def test_a_key_is_taken_from_either_header() -> None:
    access = ring()
    for given in (
        head(authorization="Bearer secret"),
        head(authorization="bearer  secret "),
        head(x_api_key="secret"),
        head(authorization="Basic abc", x_api_key="secret"),
    ):
        key = access.check(given, admin=False)
        assert key is not None
        assert key.name == "k"
    for given in (
        head(),
        head(authorization="Bearer wrong"),
        head(authorization="Bearer"),
        head(authorization="secret"),
        head(x_api_key=""),
    ):
        with pytest.raises(ApiError) as caught:
            access.check(given, admin=False)
        assert caught.value.code == "unauthorized"
        assert "secret" not in str(caught.value)


def test_an_inference_key_opens_no_admin_route() -> None:
    given = head(x_api_key="secret")
    with pytest.raises(ApiError, match="an admin key is needed"):
        ring().check(given, admin=True)
    assert ring(kind="admin").check(given, admin=True) is not None
    assert Access(None).check(head(), admin=True) is None, "without keys everybody may"


def test_a_replaced_ring_forgets_what_it_knew() -> None:
    access = ring()
    access.check(head(x_api_key="secret"), admin=False)
    access.replace(KeyRing([ApiKey(name="other", hash=hash_secret(b"new"))]))
    with pytest.raises(ApiError):
        access.check(head(x_api_key="secret"), admin=False)


def test_the_first_key_after_the_last_was_revoked(tmp_path: Path) -> None:
    file = str(tmp_path / "keys.yaml")
    for words in (("new", "ann"), ("revoke", "ann"), ("new", "bob")):
        done = lswap(*words, "--file", file)
        assert done.returncode == 0, done.stderr
    assert [key.name for key in read_keys(file)] == ["bob"]


@pytest.mark.parametrize(
    ("line", "rights"),
    [("", ()), ("compat: 0.1", ("ttl", "slots")), ("keys: {rights: [pin]}", ("pin",))],
)
def test_what_every_key_may(line: str, rights: tuple[str, ...]) -> None:
    text = f"{line}\nmodels: {{a: {{model: a.gguf}}}}\n"
    config = load_config(text, path=None, base_dir="/etc", env={}, home="/home/me")
    assert config.keys.rights == rights
    given = with_rights(KeyRing([ApiKey(name="k", hash=GOOD)]), config.keys.rights)
    key = given.find(b"secret")
    assert key is not None
    assert {right for right in RIGHTS if key.may(right)} == set(rights)


def test_the_time_of_a_refusal_tells_nothing_of_the_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are found by their hashes. No secret is compared with one that is wrong, so there is
    nothing whose time could grow with what they share (bench/key_timing.py measures it)."""
    compared: list[tuple[object, object]] = []
    digest = hmac.compare_digest

    def spy(first: str, second: str) -> bool:
        compared.append((first, second))
        return digest(first, second)

    class Known(bytes):
        def __eq__(self, other: object) -> bool:
            compared.append((self, other))
            return bytes.__eq__(self, other)

        def __hash__(self) -> int:
            return bytes.__hash__(self)

    monkeypatch.setattr("hmac.compare_digest", spy)
    right = b"lsk-" + b"a" * 43
    key = ApiKey(name="right", hash=hash_secret(right))
    access = Access(KeyRing([key]))
    assert access.check(head(authorization=f"Bearer {right.decode()}"), admin=False) == key
    assert compared == [(hash_secret(right), hash_secret(right))]
    compared.clear()
    access = Access(KeyRing([key]), known={Known(right): key})
    for shared in range(len(right)):
        wrong = right[:shared] + b"z" * (len(right) - shared)
        with pytest.raises(ApiError, match="key"):
            access.check(head(authorization=f"Bearer {wrong.decode()}"), admin=False)
    assert not compared
