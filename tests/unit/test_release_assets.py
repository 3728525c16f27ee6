"""Which archive of a release fits which machine, from the names alone."""

from __future__ import annotations

import re

import pytest

from llamaswap_py.errors import EngineError
from llamaswap_py.llamacpp.release_assets import (
    Platform,
    Release,
    ReleaseAsset,
    backends_for,
    newest_offers,
    offers_of,
    too_old_for,
)
from llamaswap_py.llamacpp.release_server import limit_ends

X64 = Platform("linux", "x86_64", "glibc 2.36")
NAMES = (
    *("ubuntu-x64", "ubuntu-arm64", "ubuntu-vulkan-x64", "ubuntu-vulkan-arm64"),
    *("ubuntu-rocm-7.2-x64", "macos-arm64", "macos-x64", "ubuntu-s390x"),
    *("ubuntu-openvino-2026.2-x64", "win-cpu-x64", "win-cuda-12.4-x64", "910b-openEuler-x86"),
)


def release(build: int, *names: str, ending: str = "tar.gz", state: str = "uploaded") -> Release:
    files = [f"llama-b{build}-bin-{name}.{ending}" for name in names]
    return Release(
        f"b{build}", [ReleaseAsset(one, 7, f"https://x/{one}", state=state) for one in files]
    )


ALL = release(11434, *NAMES)


def chosen(machine: Platform, backend: str = "auto", of: Release = ALL) -> list[str]:
    offers = offers_of(of, machine, backends_for(machine, backend))
    names = [re.sub(r"^llama-b\d+-bin-", "", offer.asset.name) for offer in offers]
    return [name.removesuffix(".tar.gz") for name in names]


def machine(**changes: object) -> Platform:
    return Platform(**({"system": "linux", "processor": "x86_64", "libc": "glibc 2.36"} | changes))  # type: ignore[arg-type]


def test_each_machine_gets_what_it_can_use_and_then_the_processors() -> None:
    assert chosen(X64) == ["ubuntu-x64"]
    assert chosen(machine(processor="aarch64")) == ["ubuntu-arm64"]
    assert chosen(machine(vulkan=True)) == ["ubuntu-vulkan-x64", "ubuntu-x64"]
    assert chosen(machine(vulkan=True, processor="arm64")) == [
        "ubuntu-vulkan-arm64",
        "ubuntu-arm64",
    ]
    everything = machine(vulkan=True, rocm="7.2.1", nvidia=True)
    assert chosen(everything) == ["ubuntu-rocm-7.2-x64", "ubuntu-vulkan-x64", "ubuntu-x64"]
    assert chosen(machine(system="darwin", processor="arm64", libc="")) == ["macos-arm64"]
    assert chosen(machine(system="darwin", libc="")) == ["macos-x64"]


def test_a_backend_that_is_named_is_the_only_one() -> None:
    assert chosen(machine(vulkan=True), "cpu") == ["ubuntu-x64"]
    assert chosen(X64, "vulkan") == ["ubuntu-vulkan-x64"]
    assert chosen(X64, "rocm") == ["ubuntu-rocm-7.2-x64"]
    assert chosen(X64, "cuda") == []
    assert chosen(machine(system="darwin", processor="arm64"), "cpu") == ["macos-arm64"]


def test_a_cuda_build_is_taken_once_there_is_one() -> None:
    later = release(12000, "ubuntu-cuda-12.4-x64", "ubuntu-cuda-13.1-x64", "ubuntu-x64")
    assert chosen(machine(nvidia=True), of=later) == ["ubuntu-cuda-13.1-x64", "ubuntu-x64"]
    assert chosen(X64, of=later) == ["ubuntu-x64"]


def test_rocm_of_another_major_version_is_left_out() -> None:
    assert chosen(machine(rocm="6.4.2")) == ["ubuntu-x64"]
    two = release(12000, "ubuntu-rocm-6.4-x64", "ubuntu-rocm-7.2-x64", "ubuntu-rocm-7.10-x64")
    assert chosen(machine(rocm="6.4.2"), of=two) == ["ubuntu-rocm-6.4-x64"]
    assert chosen(machine(rocm="7.2.0"), of=two) == ["ubuntu-rocm-7.10-x64"]


@pytest.mark.parametrize(
    ("changes", "backend", "said"),
    [
        ({"libc": ""}, "auto", "need glibc.*engine build"),
        ({"processor": "riscv64"}, "auto", r"no release for this processor \(riscv64\)"),
        ({"system": "freebsd14"}, "auto", "does not use llama.cpp's releases for freebsd14"),
        ({}, "metal", "Metal is for macOS"),
        ({"system": "darwin"}, "vulkan", "no vulkan release for macOS"),
    ],
)
def test_a_machine_without_a_release_is_told_why(
    changes: dict[str, object], backend: str, said: str
) -> None:
    with pytest.raises(EngineError, match=said):
        backends_for(machine(**changes), backend)


def test_the_newest_release_that_has_its_assets_is_taken() -> None:
    listed = [
        release(11500),
        release(11499, "ubuntu-x64", state="starting"),
        release(9999, "ubuntu-x64"),
        release(11498, "ubuntu-x64"),
        release(11497, *NAMES),
        Release("gguf-v0.17", [ReleaseAsset("llama-gguf-v0.17-bin-ubuntu-x64.tar.gz", 7, "")]),
        Release("b12000", release(12000, "ubuntu-x64").assets, draft=True),
        Release("b12001", release(12001, "ubuntu-x64").assets, prerelease=True),
    ]
    offers = newest_offers(listed, machine(vulkan=True), ("vulkan", "cpu"))
    assert [(one.tag, one.backend) for one in offers] == [("b11497", "vulkan"), ("b11498", "cpu")]
    assert newest_offers(listed[:2], X64, ("cpu",)) == []


def test_an_archive_of_another_release_does_not_count() -> None:
    assert chosen(X64, of=Release("b2", release(1, "ubuntu-x64").assets)) == []
    older = release(6000, "ubuntu-x64", ending="zip")
    assert chosen(X64, of=older) == ["ubuntu-x64.zip"]
    both = Release("b6000", [*release(6000, "ubuntu-x64").assets, *older.assets])
    assert chosen(X64, of=both) == ["ubuntu-x64"]


def test_an_installation_is_named_after_its_archive() -> None:
    names = [asset.engine_name for asset in ALL.assets]
    assert names[:3] == ["b11434-ubuntu-x64", "b11434-ubuntu-arm64", "b11434-ubuntu-vulkan-x64"]
    assert release(6000, "ubuntu-x64", ending="zip").assets[0].engine_name == "b6000-ubuntu-x64"


def test_an_old_c_library_is_said_in_words() -> None:
    said = (
        "llama-server: /lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.38' not found (required "
        "by llama-server) / libm.so.6: version `GLIBC_2.4' not found (required by libggml.so)"
    )
    why = too_old_for(said, "glibc 2.36")
    assert why == "it needs glibc 2.38 or newer, and this machine has glibc 2.36"
    assert "libstdc++ (GLIBCXX_3.4.32)" in too_old_for("version `GLIBCXX_3.4.32' not found", "")
    assert too_old_for("libgomp.so.1: cannot open shared object file", "glibc 2.36") == ""


def test_the_end_of_a_limit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    used_up = {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1001500"}
    assert re.fullmatch(r"until \d\d:\d\d \(in 25 m\)", limit_ends(403, used_up, 1_000_000.0))
    assert limit_ends(429, used_up, 1_000_000.0) == limit_ends(403, used_up, 1_000_000.0)
    assert re.fullmatch(r"until \d\d:\d\d \(in 1 m\)", limit_ends(429, {"retry-after": "60"}, 0.0))
    assert limit_ends(429, {}, 0.0) == "for now"
    assert limit_ends(403, {"x-ratelimit-remaining": "0"}, 0.0) == "for now"
    assert limit_ends(403, {"x-ratelimit-remaining": "41"}, 0.0) == ""
    assert limit_ends(404, used_up, 0.0) == ""
    for odd in ("-1", "1e9", "9" * 30, "soon"):
        assert limit_ends(429, {"retry-after": odd}, 0.0) == "for now"
