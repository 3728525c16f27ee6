"""Installing a release of llama.cpp from a server that speaks GitHub's releases API."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import socket
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from llamaswap_py.cli import offer
from llamaswap_py.cli.engine import app
from llamaswap_py.demo import run as demo
from llamaswap_py.errors import EngineError, LswapError
from llamaswap_py.llamacpp import archives, binaries, install, release_server, releases
from llamaswap_py.llamacpp.binaries import choose_engine, locate_engine
from llamaswap_py.llamacpp.install import pinned_ref
from llamaswap_py.llamacpp.paths import engines_folder, read_manifest
from llamaswap_py.llamacpp.release_assets import Platform
from llamaswap_py.llamacpp.releases import install_release, this_platform, update_engine
from tests import needs
from tests.fakes.fake_releases import (
    Answer,
    FakeReleases,
    redirecting,
    send_file,
    send_json,
    serving,
)

from .engine_fakes import install_server, server_script

if TYPE_CHECKING:
    from http.server import BaseHTTPRequestHandler

PINNED = pinned_ref()
CPU = f"llama-{PINNED}-bin-ubuntu-x64.tar.gz"
VULKAN = f"llama-{PINNED}-bin-ubuntu-vulkan-x64.tar.gz"


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Platform:
    """An ordinary machine: x64, no card, nothing installed."""
    for name in ("HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    proxies = [name for name in os.environ if name.lower().endswith("_proxy")]
    for name in ("LSWAP_LLAMA_SERVER", "GITHUB_TOKEN", *proxies):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr(binaries, "COMMON_PLACES", ())
    found = Platform("linux", "x86_64", "glibc 2.36")
    monkeypatch.setattr(releases, "this_platform", lambda: found)
    return found


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeReleases]:
    with serving() as server:
        monkeypatch.setenv("LSWAP_RELEASES_URL", f"{server.base}/releases")
        yield server


def packed(tag: str, script: str | None = None, /, **members: bytes) -> bytes:
    """Return an archive laid out as llama.cpp's: one folder, libraries beside the binary."""
    number = int(tag.removeprefix("b"))
    server = f"#!/bin/sh\n{server_script(number) if script is None else script}\n".encode()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in {"llama-server": server, "libggml.so": b"lib", **members}.items():
            info = tarfile.TarInfo(f"llama-{tag}/{name}")
            info.size, info.mode = len(content), 0o755
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def installed() -> list[str]:
    folder = engines_folder()
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def call(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    if isinstance(result.exception, LswapError):
        return 1, f"{result.output}{result.exception}\n"
    return result.exit_code, result.output


def test_the_release_that_lswap_is_tested_with_is_installed(fake: FakeReleases) -> None:
    fake.release("b99999").asset("llama-b99999-bin-ubuntu-x64.tar.gz", packed("b99999"))
    fake.release(PINNED).asset(CPU, packed(PINNED))
    fake.asset(f"llama-{PINNED}-bin-ubuntu-arm64.tar.gz", b"")
    lines: list[str] = []
    seen: list[tuple[int, int | None]] = []
    engine = install_release(say=lines.append, on_progress=lambda *now: seen.append(now))
    folder = engines_folder() / f"{PINNED}-ubuntu-x64"
    assert engine.path == folder / f"llama-{PINNED}/llama-server"
    assert engine.path.with_name("libggml.so").read_bytes() == b"lib"
    manifest = read_manifest(folder)
    assert (manifest.ref, manifest.backend) == (PINNED, "cpu")
    assert manifest.source.endswith(f"/download/{PINNED}/{CPU}")
    size = len(fake.files[f"/download/{PINNED}/{CPU}"])
    assert seen[-1] == (size, size)
    assert lines == [f"downloading {CPU} ({size} B)"]
    assert fake.paths() == [f"/releases/tags/{PINNED}", f"/download/{PINNED}/{CPU}"]
    assert locate_engine().path == engine.path
    # Once more: nothing is downloaded.
    assert install_release(say=lines.append).path == engine.path
    assert lines[1:] == [f"{PINNED}-ubuntu-x64 is installed already"]
    assert len(fake.asked) == 3


def test_an_installation_that_was_changed_is_made_again(fake: FakeReleases) -> None:
    fake.release(PINNED).asset(CPU, packed(PINNED))
    engine = install_release()
    engine.path.write_text(f"#!/bin/sh\n{server_script(1)}\n")
    assert install_release().build == int(PINNED[1:])
    assert installed() == [f"{PINNED}-ubuntu-x64"]


def test_a_release_is_chosen_by_its_tag_or_as_the_newest(fake: FakeReleases) -> None:
    for tag in ("b7200", "b7100"):
        fake.release(tag).asset(f"llama-{tag}-bin-ubuntu-x64.tar.gz", packed(tag))
    assert install_release("b7100").build == 7100
    assert install_release(newest=True).build == 7200
    with pytest.raises(EngineError, match="has no release b7300"):
        install_release("b7300")
    with pytest.raises(EngineError, match="master is not a release"):
        install_release("master")
    assert installed() == ["b7100-ubuntu-x64", "b7200-ubuntu-x64"]


def test_a_release_whose_assets_are_not_there_yet_is_passed_over(fake: FakeReleases) -> None:
    fake.release("b7300")
    fake.release("b7200").asset("llama-b7200-bin-ubuntu-x64.tar.gz", b"", state="starting")
    fake.release("b7100").asset("llama-b7100-bin-ubuntu-x64.tar.gz", packed("b7100"))
    assert install_release(newest=True).build == 7100
    with pytest.raises(EngineError, match=r"b7300 has no archive for this machine \(cpu\)"):
        install_release("b7300")
    del fake.releases[2]
    with pytest.raises(EngineError, match="the newest releases have no archive"):
        install_release(newest=True)


def test_another_file_than_the_release_says_is_refused(fake: FakeReleases) -> None:
    content = packed(PINNED)
    fake.release(PINNED).asset(CPU, content, digest=f"sha256:{'0' * 64}")
    with pytest.raises(EngineError, match=hashlib.sha256(content).hexdigest()):
        install_release()
    assert installed() == []


def test_a_file_of_another_size_is_refused(fake: FakeReleases) -> None:
    content = packed(PINNED)
    fake.release(PINNED).asset(CPU, content, size=len(content) - 1)
    with pytest.raises(EngineError, match="is longer than the release says"):
        install_release()
    fake.releases[0]["assets"][0]["size"] = len(content) + 1
    with pytest.raises(EngineError, match="broke off after"):
        install_release()
    fake.releases[0]["assets"][0]["size"] = 5 << 30
    with pytest.raises(EngineError, match="has 5 GiB, and there is room for"):
        install_release()
    assert installed() == []


@pytest.mark.parametrize("digest", [None, "", "md5:0", "sha256:xyz"])
def test_without_a_digest_the_user_has_to_give_it(fake: FakeReleases, digest: str | None) -> None:
    content = packed(PINNED)
    fake.release(PINNED).asset(CPU, content, digest=digest)
    with pytest.raises(EngineError, match=r"does not say the SHA-256.*--sha256"):
        install_release()
    assert fake.paths() == [f"/releases/tags/{PINNED}"]
    with pytest.raises(EngineError, match="has SHA-256"):
        install_release(sha256="0" * 64)
    assert install_release(sha256=hashlib.sha256(content).hexdigest()).build == int(PINNED[1:])


def test_a_digest_of_the_user_must_be_that_of_the_release(fake: FakeReleases) -> None:
    fake.release(PINNED).asset(CPU, packed(PINNED))
    with pytest.raises(EngineError, match=f"in the release, not {'0' * 64}"):
        install_release(sha256="0" * 64)
    assert installed() == []


def test_a_download_that_breaks_off_goes_on_where_it_was(fake: FakeReleases) -> None:
    content = packed(PINNED)
    path = fake.release(PINNED).asset(CPU, content)
    cut = partial(send_file, content=content, cut=len(content) // 3)
    fake.special[path] = [cut, cut]
    assert install_release().build == int(PINNED[1:])
    ranges = [headers.get("range") for asked, headers in fake.asked if asked == path]
    third = len(content) // 3
    assert ranges == [None, f"bytes={third}-", f"bytes={2 * third}-"]


def test_a_server_that_knows_no_ranges_sends_the_file_again(fake: FakeReleases) -> None:
    content = packed(PINNED)
    path = fake.release(PINNED).asset(CPU, content)

    def whole(request: BaseHTTPRequestHandler) -> None:
        del request.headers["range"]
        send_file(request, content)

    fake.special[path] = [partial(send_file, content=content, cut=50), whole]
    assert install_release().build == int(PINNED[1:])


def test_a_download_that_stays_cut_leaves_nothing(fake: FakeReleases) -> None:
    content = packed(PINNED)
    path = fake.release(PINNED).asset(CPU, content)
    nothing = partial(send_file, content=content, cut=0)
    fake.special[path] = [partial(send_file, content=content, cut=50), *[nothing] * 3]
    with pytest.raises(EngineError, match="broke off after 50 B of"):
        install_release()
    assert installed() == []
    assert install_release().build == int(PINNED[1:])  # the next one begins anew


def test_what_a_killed_installation_left_is_removed(fake: FakeReleases) -> None:
    fake.release(PINNED).asset(CPU, packed(PINNED))
    left = engines_folder() / ".unfinished.install-left"
    held = engines_folder() / ".unfinished.install-held"
    for folder in (left, held):
        (folder / "tree").mkdir(parents=True)
        os.utime(folder, (0, 0))
    with install._locked(held):
        install_release()
    assert installed() == [".unfinished.install-held", f"{PINNED}-ubuntu-x64"]


@pytest.mark.parametrize("status", [403, 429])
def test_the_limit_of_the_api_is_named_with_its_end(fake: FakeReleases, status: int) -> None:
    def limit(request: BaseHTTPRequestHandler) -> None:
        used_up = {"X_RateLimit_Remaining": "0", "X_RateLimit_Reset": "99999999999"}
        send_json(request, {"message": "API rate limit exceeded"}, status=status, **used_up)

    fake.release(PINNED)
    fake.special[f"/releases/tags/{PINNED}"] = [limit]
    with pytest.raises(EngineError) as refused:
        install_release()
    said = str(refused.value)
    assert re.search(r"answers no more requests until \d\d:\d\d \(in .*\): it allows 60", said)
    assert f"({status})" in said
    assert "set GITHUB_TOKEN" in said
    assert "lswap engine build" in said


def test_other_failures_of_the_server_are_named(fake: FakeReleases) -> None:
    fake.release(PINNED).asset(CPU, packed(PINNED))
    api, path = f"/releases/tags/{PINNED}", f"/download/{PINNED}/{CPU}"
    for status, where in ((403, api), (500, api), (401, api), (404, path), (503, path)):
        fake.special[where] = [partial(send_json, value={"message": "no"}, status=status)]
        with pytest.raises(EngineError, match=str(status)):
            install_release()
    odd: object
    for odd in ({"tag": 1}, [], "text", {"tag_name": PINNED, "assets": [{"name": 7}]}):
        fake.special[api] = [partial(send_json, value=odd)]
        with pytest.raises(EngineError, match="does not answer as GitHub's API does"):
            install_release()
    assert installed() == []


def test_the_words_of_a_status_line_cannot_command_a_terminal(fake: FakeReleases) -> None:
    def odd(request: BaseHTTPRequestHandler) -> None:
        request.wfile.write(b"HTTP/1.1 500 \x1b[2JGone\r\nContent-Length: 0\r\n\r\n")

    fake.special[f"/releases/tags/{PINNED}"] = [odd]
    with pytest.raises(EngineError, match="Gone") as caught:
        install_release()
    assert "\x1b" not in str(caught.value)


def dripping(head: bytes, drop: bytes, ended: threading.Event) -> Answer:
    """Return an answer that begins with `head`, and sends `drop` again and again."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        with suppress(OSError):
            request.wfile.write(head)
            while not ended.wait(0.02):
                request.wfile.write(drop)
        request.close_connection = True

    return answer


@pytest.mark.parametrize("slow", ["head", "list", "archive"])
def test_a_server_that_drips_ends_by_a_deadline(
    slow: str, fake: FakeReleases, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each byte comes in time, so no limit of a single wait ends it."""
    fake.release(PINNED).asset(CPU, packed(PINNED), size=10**6)
    api, path = f"/releases/tags/{PINNED}", f"/download/{PINNED}/{CPU}"
    long = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"
    ended = threading.Event()
    how = {
        "head": ("_HEAD", api, dripping(b"HTTP/1.1 200 OK\r\n", b"x-more: 1\r\n", ended)),
        "list": ("_LIST", api, dripping(long, b" ", ended)),
        "archive": ("_DOWNLOAD", path, dripping(long, b" ", ended)),
    }
    limit, where, answer = how[slow]
    monkeypatch.setattr(release_server, limit, 0.3)
    fake.special[where] = [answer]
    said = "began no answer within" if slow == "head" else "did not send all within"
    try:
        with pytest.raises(EngineError, match=said):
            install_release()
    finally:
        ended.set()
    assert installed() == []


def test_a_list_of_endless_depth_is_refused(fake: FakeReleases) -> None:
    deep = b'{"tag_name": "b1", "more": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    fake.special[f"/releases/tags/{PINNED}"] = [partial(send_file, content=deep)]
    with pytest.raises(EngineError, match="does not answer as GitHub's API does"):
        install_release()


@pytest.mark.parametrize("odd", ["https://[here/x", "https://github.com:99999/x"])
def test_what_is_not_an_address_is_refused(
    odd: str, fake: FakeReleases, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.release(PINNED).asset(CPU, packed(PINNED), browser_download_url=odd)
    with pytest.raises(EngineError, match="which is not an address"):
        install_release()
    monkeypatch.setenv("LSWAP_RELEASES_URL", odd)
    with pytest.raises(EngineError, match="is not an address that lswap asks"):
        install_release()


def test_a_folder_that_cannot_be_written_is_named(fake: FakeReleases) -> None:
    fake.release(PINNED).asset(CPU, packed(PINNED))
    engines_folder().parent.mkdir(parents=True)
    engines_folder().write_text("a file stands where the folder should be")
    with pytest.raises(EngineError, match=f"nothing was installed in {engines_folder()}") as caught:
        install_release()
    assert "XDG_DATA_HOME" in caught.value.remedy


def test_a_disk_that_is_full_meanwhile_is_named(
    fake: FakeReleases, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.release(PINNED).asset(CPU, packed(PINNED))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(install, "write_manifest", full)
    with pytest.raises(EngineError, match="No space left on device"):
        install_release()
    assert installed() == []


def test_a_link_that_leads_nowhere_is_replaced(fake: FakeReleases) -> None:
    fake.release(PINNED).asset(CPU, packed(PINNED))
    engines_folder().mkdir(parents=True)
    name = f"{PINNED}-ubuntu-x64"
    (engines_folder() / name).symlink_to("/nowhere")
    assert install_release().path.is_file()
    assert installed() == [name]


def test_a_list_without_end_is_refused(fake: FakeReleases, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release_server, "_MOST_JSON", 1000)
    fake.release(PINNED, body="x" * 2000)
    with pytest.raises(EngineError, match="a list of more than"):
        install_release()


def test_the_token_goes_to_the_api_and_to_no_other_server(
    fake: FakeReleases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_TOKEN", "ghp_secret")
    path = fake.release(PINNED).asset(CPU, packed(PINNED))
    install_release()
    assert all("authorization" not in headers for _, headers in fake.asked)  # a mirror
    with serving() as storage:
        storage.release(PINNED).asset(CPU, fake.files[path])
        monkeypatch.setattr(release_server, "API_HOST", fake.base)
        monkeypatch.setattr(release_server, "_is_asset_host", lambda _: True)
        fake.asked.clear()
        fake.special[path] = [redirecting(f"{storage.base}{path}")]
        install_release(name="again")
        sent = {asked: headers.get("authorization") for asked, headers in fake.asked}
        assert sent[f"/releases/tags/{PINNED}"] == "Bearer ghp_secret"
        assert [headers.get("authorization") for _, headers in storage.asked] == [None]


def test_a_redirect_is_followed_only_to_the_releases_own_servers(fake: FakeReleases) -> None:
    path = fake.release(PINNED).asset(CPU, packed(PINNED))
    with serving() as foreign:
        foreign.release(PINNED).asset(CPU, fake.files[path])
        for target in (
            f"{foreign.base}{path}",
            "https://example.net/x.tar.gz",
            "http://github.com/x.tar.gz",
            "https://github.com.example.net/x.tar.gz",
            "https://github.com:8443/x.tar.gz",
            "https://github.com@example.net/x.tar.gz",
            "file:///etc/passwd",
        ):
            fake.special[path] = [redirecting(target)]
            with pytest.raises(EngineError, match="which is not a server of the release"):
                install_release()
        for where in (f"/releases/tags/{PINNED}", path):
            fake.special[where] = [redirecting(f"{foreign.base}{where}")]
            with pytest.raises(EngineError, match="not a server of the release"):
                install_release()
        assert foreign.asked == []
        fake.releases[0]["assets"][0]["browser_download_url"] = f"{foreign.base}{path}"
        with pytest.raises(EngineError, match="not a server of the release"):
            install_release()
        assert foreign.asked == []
    fake.releases[0]["assets"][0]["browser_download_url"] = f"{fake.base}{path}"
    fake.special[path] = [redirecting(path)] * 9
    with pytest.raises(EngineError, match="redirects without end"):
        install_release()
    assert installed() == []


def test_github_s_own_servers_are_those_of_the_release() -> None:
    own = ("github.com", "api.github.com", "release-assets.githubusercontent.com")
    assert all(release_server._is_asset_host(f"https://{host}/x") for host in own)
    for url in (
        *("http://github.com/x", "https://githubusercontent.com/x", "https://a.b.github.com/x"),
        *("https://evilgithub.com/x", "https://github.com.evil.net/x", "https://github.com:1/x"),
    ):
        assert not release_server._is_asset_host(url)


@pytest.mark.parametrize(
    "base", ["http://example.net/releases", "ftp://127.0.0.1/x", "releases", "http://127.0.0.1.x.y"]
)
def test_a_mirror_needs_tls(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSWAP_RELEASES_URL", base)
    with pytest.raises(EngineError, match=r"is not an address that lswap asks.*https"):
        install_release()


def test_over_tls_the_server_must_prove_who_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = tmp_path / "own.pem"
    made = (
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
        *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"),
        *("-keyout", str(certificate), "-out", str(tmp_path / "certificate.pem")),
    )
    subprocess.run([needs.OPENSSL.require(), *made], check=True, capture_output=True)
    with certificate.open("a") as file:
        file.write((tmp_path / "certificate.pem").read_text())
    with serving(certificate) as fake:
        monkeypatch.setenv("LSWAP_RELEASES_URL", f"{fake.base}/releases")
        fake.release(PINNED).asset(CPU, packed(PINNED))
        with pytest.raises(EngineError, match=r"cannot be reached \(.*certificate verify failed"):
            install_release()
        assert fake.asked == []
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
        assert install_release().build == int(PINNED[1:])


def test_without_a_network_it_says_so_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        monkeypatch.setenv("LSWAP_RELEASES_URL", f"http://127.0.0.1:{taken.getsockname()[1]}/r")
        with pytest.raises(EngineError, match=r"127.0.0.1:\d+ cannot be reached.*engine build"):
            install_release()
    monkeypatch.setenv("LSWAP_RELEASES_URL", "https://releases.invalid/r")
    with pytest.raises(EngineError, match=r"releases.invalid cannot be reached \("):
        install_release()
    assert installed() == []


def test_a_name_that_nobody_resolves_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    never = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: never.wait(60))
    monkeypatch.setattr(release_server, "_CONNECT", 0.05)
    with pytest.raises(EngineError, match=r"cannot be reached \(no address within"):
        install_release()
    never.set()


# --- archives that mean harm, and engines that do not start ---------------------------------------


def hostile(**attributes: Any) -> bytes:
    """Return an archive with a good llama-server, and a member with these attributes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        script = f"#!/bin/sh\n{server_script(7100)}\n".encode()
        info = tarfile.TarInfo("x/llama-server")
        info.size, info.mode = len(script), 0o755
        tar.addfile(info, io.BytesIO(script))
        other = tarfile.TarInfo("x/other")
        for name, value in attributes.items():
            setattr(other, name, value)
        tar.addfile(other, io.BytesIO(bytes(other.size)) if other.isreg() else None)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "attributes",
    [
        {"name": "../outside", "size": 3},
        {"name": "x/../../outside", "size": 3},
        {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
        {"type": tarfile.SYMTYPE, "linkname": "../../outside"},
        {"type": tarfile.SYMTYPE, "linkname": "y/../../.."},
        {"type": tarfile.SYMTYPE, "linkname": "y/../llama-server"},
        {"type": tarfile.LNKTYPE, "linkname": "../outside"},
        {"type": tarfile.CHRTYPE},
        {"type": tarfile.FIFOTYPE},
        {"size": 3_000_000},
    ],
    ids=str,
)
def test_an_archive_that_means_harm_is_refused(
    fake: FakeReleases, monkeypatch: pytest.MonkeyPatch, attributes: dict[str, Any], tmp_path: Path
) -> None:
    monkeypatch.setattr(archives, "MOST_UNPACKED", 2_000_000)
    fake.release(PINNED).asset(CPU, hostile(**attributes))
    with pytest.raises(EngineError, match="cannot be unpacked"):
        install_release()
    assert installed() == []
    assert not list(tmp_path.rglob("outside"))


def test_an_archive_with_too_many_members_is_refused(
    fake: FakeReleases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "MOST_MEMBERS", 2)
    fake.release(PINNED).asset(CPU, packed(PINNED, another=b""))
    with pytest.raises(EngineError, match="more than 2 members"):
        install_release()


def test_links_between_libraries_are_kept(fake: FakeReleases) -> None:
    link = {"name": "x/libggml.so.0", "type": tarfile.SYMTYPE, "linkname": "llama-server"}
    fake.release(PINNED).asset(CPU, hostile(**link))
    engine = install_release()
    assert engine.path.with_name("libggml.so.0").readlink() == Path("llama-server")


TOO_NEW = """echo "llama-server: /lib/libc.so.6: version \\`GLIBC_2.38' not found" >&2; exit 1"""


def test_an_engine_that_does_not_start_gives_way_to_the_next(
    fake: FakeReleases, machine: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = Platform(machine.system, machine.processor, machine.libc, vulkan=True)
    monkeypatch.setattr(releases, "this_platform", lambda: card)
    fake.release(PINNED).asset(VULKAN, packed(PINNED, TOO_NEW))
    fake.asset(CPU, packed(PINNED))
    lines: list[str] = []
    assert install_release(say=lines.append).backend == "cpu"
    assert lines[1] == (
        f"{VULKAN} does not start here: it needs glibc 2.38 or newer, and this machine has "
        f"glibc 2.36; trying {CPU}"
    )
    assert installed() == [f"{PINNED}-ubuntu-x64"]


def test_if_no_engine_starts_the_reason_is_said(fake: FakeReleases) -> None:
    fake.release(PINNED).asset(CPU, packed(PINNED, TOO_NEW))
    with pytest.raises(EngineError, match=r"glibc 2.38.*glibc 2.36 - `lswap engine build`"):
        install_release()
    fake.releases.clear()
    fake.release(PINNED).asset(CPU, packed(PINNED, "echo libgomp.so.1 is missing >&2; exit 127"))
    with pytest.raises(EngineError, match=rf"{CPU} does not start here: llama-{PINNED}/llama-serv"):
        install_release()
    fake.releases.clear()
    fake.release(PINNED).asset(CPU, b"<html>not found</html>")
    with pytest.raises(EngineError, match="cannot be unpacked"):
        install_release()
    assert installed() == []


def test_for_an_nvidia_card_it_says_that_there_is_no_cuda_build(
    fake: FakeReleases, machine: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = Platform(machine.system, machine.processor, machine.libc, nvidia=True, vulkan=True)
    monkeypatch.setattr(releases, "this_platform", lambda: card)
    fake.release(PINNED).asset(VULKAN, packed(PINNED, **{"libggml-vulkan.so": b"lib"}))
    fake.asset(CPU, packed(PINNED))
    lines: list[str] = []
    assert install_release(say=lines.append).backend == "vulkan"
    assert "no CUDA build for Linux" in lines[0]
    assert "`lswap engine build --backend cuda`" in lines[0]
    with pytest.raises(EngineError, match=r"no CUDA build.*engine build --backend cuda.*Vulkan's"):
        install_release(backend="cuda")
    with pytest.raises(EngineError, match="there is no backend sycl"):
        install_release(backend="sycl")


def test_a_card_that_the_archive_cannot_use_is_named(
    fake: FakeReleases, machine: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.release(PINNED).asset(CPU, packed(PINNED))
    lines: list[str] = []
    card = replace(machine, card=True)
    for found, said in (
        (replace(card, nvidia=True), ["no CUDA build for Linux", "apt-get install libvulkan1"]),
        (card, ["apt-get install libvulkan1"]),
        (replace(card, vulkan=True), ["has no other that fits"]),
    ):
        monkeypatch.setattr(releases, "this_platform", partial(lambda it: it, found))
        lines.clear()
        install_release(say=lines.append)
        assert len(lines) == len(said) + 1
        assert all(part in line for part, line in zip(said, lines, strict=False))
        lines.clear()
        install_release(backend="cpu", say=lines.append)
        assert len(lines) == 1


def test_this_machine_is_known() -> None:
    found = this_platform()
    assert found.system in ("linux", "darwin")
    assert found.processor == os.uname().machine.lower()


# --- the commands ---------------------------------------------------------------------------------


def test_an_update_keeps_the_old_engine_and_says_how_to_go_back(fake: FakeReleases) -> None:
    fake.release("b7100").asset("llama-b7100-bin-ubuntu-x64.tar.gz", packed("b7100"))
    status, text = call("install", "--ref", "b7100")
    assert (status, "lswap uses it from its next start on" in text) == (0, True)
    status, text = call("update")
    assert (status, text) == (
        0,
        "b7100-cpu is as new as llama.cpp's newest release for this machine\n",
    )
    fake.release("b7200").asset("llama-b7200-bin-ubuntu-x64.tar.gz", packed("b7200"))
    status, text = call("update")
    assert status == 0
    assert text.endswith("to go back: `lswap engine use b7100-ubuntu-x64`\n")
    assert locate_engine().build == 7200
    assert installed() == ["b7100-ubuntu-x64", "b7200-ubuntu-x64"]
    choose_engine("b7100-ubuntu-x64")
    assert locate_engine().build == 7100
    # A choice stays: the next update says how to change it.
    fake.release("b7300").asset("llama-b7300-bin-ubuntu-x64.tar.gz", packed("b7300"))
    status, text = call("update")
    assert "lswap still uses b7100-cpu (chosen); `lswap engine use b7300-ubuntu-x64`" in text


def test_an_update_keeps_the_backend_of_the_engine_in_use(
    fake: FakeReleases, machine: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = Platform(machine.system, machine.processor, machine.libc, vulkan=True)
    monkeypatch.setattr(releases, "this_platform", lambda: card)
    for name in ("ubuntu-vulkan-x64", "ubuntu-x64"):
        if not fake.releases:
            fake.release("b7200")
        fake.asset(f"llama-b7200-bin-{name}.tar.gz", packed("b7200"))
    install_server(7100, "cpu")
    engine = update_engine(locate_engine())
    assert engine is not None
    assert engine.path.parent.parent.name == "b7200-ubuntu-x64"
    install_server(7201, "cuda")
    with pytest.raises(EngineError, match=r"no CUDA build.*engine build --backend cuda"):
        update_engine(locate_engine())
    assert update_engine(None) is not None
    # Another backend than that of the engine in use is installed although that is as new.
    cpu = install_server(7300, "cpu")
    assert update_engine(locate_engine(str(cpu))) is None
    other = update_engine(locate_engine(str(cpu)), backend="vulkan")
    assert other is not None
    assert other.path.parent.parent.name == "b7200-ubuntu-vulkan-x64"


def test_install_prints_json_and_keeps_its_lines_apart(fake: FakeReleases) -> None:
    fake.release(PINNED).asset(CPU, packed(PINNED))
    result = CliRunner().invoke(app, ["install", "--json"])
    assert json.loads(result.stdout)["build"] == int(PINNED[1:])
    assert f"downloading {CPU}" in result.stderr
    result = CliRunner().invoke(app, ["update", "--json"])
    assert json.loads(result.stdout)["build"] == int(PINNED[1:])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["x.tar.gz"], "needs its --sha256"),
        (["x.tar.gz", "--sha256", "0" * 64, "--latest"], "choose a release, not an ARCHIVE"),
        (["x.tar.gz", "--sha256", "0" * 64, "--backend", "cpu"], "choose a release"),
        (["--ref", "b7100", "--latest"], "two releases"),
        (["--sha256", "0"], "64 hexadecimal digits"),
        (["--name", "../x"], "not a good name"),
    ],
)
def test_a_wrong_command_is_explained(words: list[str], said: str) -> None:
    status, text = call("install", *words)
    assert status == 1
    assert said in text


# --- where there is no engine ---------------------------------------------------------------------


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Builds that were asked for; each installs a fake at once."""
    asked: list[object] = []

    def build(options: object) -> None:
        asked.append(options)
        install_server(int(PINNED[1:]))

    monkeypatch.setattr(demo, "build_engine", build)
    return asked


def test_the_demo_takes_a_release_if_it_can(
    fake: FakeReleases, built: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    fake.release(PINNED).asset(CPU, packed(PINNED))
    demo._provide_engine(build=True)
    assert built == []
    assert f"llama-server {PINNED}-cpu" in capsys.readouterr().out
    assert installed() == [f"{PINNED}-ubuntu-x64"]


def test_the_demo_builds_where_there_is_no_network(
    built: list[object], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LSWAP_RELEASES_URL", "https://releases.invalid/r")
    demo._provide_engine(build=True)
    assert built == [[]]
    said = capsys.readouterr().out
    assert "releases.invalid cannot be reached (" in said
    assert "building one instead (some minutes, once)" in said


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_person_without_an_engine_is_offered_one(
    fake: FakeReleases, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.release(PINNED).asset(CPU, packed(PINNED))
    assert offer.offer_engine() is False  # not a terminal
    monkeypatch.setattr("sys.stderr", _Terminal())
    monkeypatch.setattr("sys.stdin", _Terminal("n\n"))
    assert offer.offer_engine() is False
    assert fake.asked == []
    monkeypatch.setenv("LSWAP_LLAMA_SERVER", "/nowhere")
    monkeypatch.setattr("sys.stdin", _Terminal("y\n"))
    assert offer.offer_engine() is False  # the user has named one
    monkeypatch.delenv("LSWAP_LLAMA_SERVER")
    assert offer.offer_engine() is True
    assert installed() == [f"{PINNED}-ubuntu-x64"]
    assert offer.offer_engine() is False  # there is one now
