"""What the build script says before a build for Vulkan, on made-up headers and compilers."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from llamaswap_py.errors import EngineError
from llamaswap_py.llamacpp.doctor import CheckState, examine
from llamaswap_py.llamacpp.install import check_build, find_script

NEWER = "struct VkLayerSettingsCreateInfoEXT"
LINUX = pytest.mark.skipif(os.uname().sysname == "Darwin", reason="missing: a system with Debian")


def write_program(path: Path, body: str = "exit 0") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def write_headers(folder: Path, patch: int, *, content: str = NEWER, spirv: bool = True) -> Path:
    """Write what the script reads of the Vulkan headers 1.3.`patch`, and the SPIR-V headers."""
    files = {
        "include/vulkan/vulkan_core.h": (
            f"#define VK_HEADER_VERSION {patch}\n"
            "#define VK_HEADER_VERSION_COMPLETE VK_MAKE_API_VERSION(0, 1, 3, VK_HEADER_VERSION)\n"
            f"{content}\n"
        )
    }
    if spirv:
        files["include/spirv/unified1/spirv.hpp"] = ""
        files["share/cmake/SPIRV-Headers/SPIRV-HeadersConfig.cmake"] = ""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@dataclass
class Machine:
    """A machine with glslc and a compiler that links with libvulkan, and no headers of its own."""

    folder: Path
    env: dict[str, str]

    def run(self, *options: str) -> tuple[int, str]:
        done = subprocess.run(
            ["bash", str(find_script()), "--backend", "vulkan", *options],
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    def missing(self, *options: str) -> str:
        """Return what the check says; it must name something that is missing."""
        status, text = self.run("--check", *options)
        assert status == 1, text
        assert text.startswith("error: --backend vulkan needs "), text
        assert "\n  what to do: " in text
        return text


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    tools = tmp_path / "tools"
    write_program(tools / "glslc")
    write_program(tools / "linker")
    env = {k: v for k, v in os.environ.items() if k not in ("VULKAN_SDK", "LSWAP_VULKAN_HEADERS")}
    env |= {"PATH": f"{tools}:{env['PATH']}", "CXX": str(tools / "linker")}
    env |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "XDG_DATA_HOME": str(tmp_path / "data")}
    return Machine(tmp_path, env)


def test_with_all_there_nothing_is_missing(machine: Machine) -> None:
    folder = write_headers(machine.folder / "new", 290)
    status, text = machine.run("--check", "--vulkan-headers", str(folder))
    assert status == 0, text
    assert text == f"nothing is missing for --backend vulkan (Vulkan headers 1.3.290 in {folder})\n"
    assert not (machine.folder / "cache").exists()


def test_headers_that_are_too_old_are_named_with_their_version_and_what_to_do(
    machine: Machine,
) -> None:
    folder = write_headers(machine.folder / "old", 239, content="")
    text = machine.missing("--vulkan-headers", str(folder))
    assert f"newer Vulkan headers (those in {folder}/include are 1.3.239, 1.3.275" in text
    assert "scripts/fetch_vulkan_headers.sh" in text
    assert "--vulkan-headers" in text.split("what to do")[1]
    assert "SPIR-V" not in text


def test_a_build_says_the_same_before_it_fetches_anything(machine: Machine) -> None:
    folder = write_headers(machine.folder / "old", 239, content="")
    status, text = machine.run("--vulkan-headers", str(folder))
    assert status == 1
    assert text == machine.missing("--vulkan-headers", str(folder))
    assert not (machine.folder / "cache").exists()


def test_a_folder_without_headers_is_named(machine: Machine) -> None:
    text = machine.missing("--vulkan-headers", str(machine.folder))
    assert f"the Vulkan headers (there are none in {machine.folder})" in text
    assert "apt-get install libvulkan-dev spirv-headers" in text


def test_spirv_headers_come_from_the_system_or_are_named_as_missing(machine: Machine) -> None:
    folder = write_headers(machine.folder / "new", 290, spirv=False)
    if Path("/usr/share/cmake/SPIRV-Headers/SPIRV-HeadersConfig.cmake").exists():
        assert machine.run("--check", "--vulkan-headers", str(folder))[0] == 0
        return
    text = machine.missing("--vulkan-headers", str(folder))
    assert f"the SPIR-V headers (neither in {folder} nor in /usr)" in text
    assert "apt-get install spirv-headers" in text


@LINUX
def test_all_that_is_missing_is_named_at_once(machine: Machine) -> None:
    for name in ("bash", "uname", "nproc", "awk", "cksum", "cut", "getconf", "dirname", "grep"):
        write_program(machine.folder / f"bare/{name}", f'exec {_which(name)} "$@"')
    write_program(machine.folder / "tools/linker", "exit 1")
    machine.env["PATH"] = str(machine.folder / "bare")
    folder = write_headers(machine.folder / "old", 239, content="")
    text = machine.missing("--vulkan-headers", str(folder))
    needed = text.split("what to do")[0]
    assert "glslc (the shader compiler), newer Vulkan headers (" in needed
    assert "), libvulkan.so (the loader, to link with)\n" in needed
    assert "apt-get install glslc libvulkan-dev; " in text


def _which(name: str) -> str:
    import shutil

    found = shutil.which(name)
    assert found is not None
    return found


def test_a_named_folder_wins_over_the_variable_and_that_over_the_sdk(machine: Machine) -> None:
    folders = {n: write_headers(machine.folder / n, 280 + n_) for n_, n in enumerate("abc")}
    for name, *options in (
        ("a", "--vulkan-headers", str(folders["a"])),
        ("b",),
        ("c",),
    ):
        machine.env["LSWAP_VULKAN_HEADERS"] = str(folders["b"])
        machine.env["VULKAN_SDK"] = str(folders["c"])
        if name == "c":
            del machine.env["LSWAP_VULKAN_HEADERS"]
        status, text = machine.run("--check", *options)
        assert status == 0, text
        assert text.endswith(f" in {folders[name]})\n")


def test_headers_of_unpacked_packages_are_found_below_usr(machine: Machine) -> None:
    write_headers(machine.folder / "root/usr", 290)
    status, text = machine.run("--check", "--vulkan-headers", str(machine.folder / "root"))
    assert status == 0, text
    assert f" in {machine.folder}/root/usr)" in text


def test_fetched_headers_are_found_where_no_others_are_new_enough(machine: Machine) -> None:
    folder = write_headers(machine.folder / "cache/lswap/build/vulkan-headers", 290)
    machine.env["VULKAN_SDK"] = str(write_headers(machine.folder / "old", 239, content=""))
    status, text = machine.run("--check")
    assert status == 0, text
    system = Path("/usr/include/vulkan/vulkan_core.h")
    if not (system.exists() and NEWER.split()[1] in system.read_text()):
        assert text.endswith(f" in {folder})\n")


def test_the_place_of_the_headers_is_no_part_of_the_flags(machine: Machine) -> None:
    folder = write_headers(machine.folder / "new", 290)
    status, text = machine.run("--rpc", "--dry-run", "--vulkan-headers", str(folder))
    assert status == 0, text
    plan = {line.split()[0]: line.split(maxsplit=1)[1] for line in text.splitlines()}
    assert plan["headers"] == f"1.3.290 ({folder})"
    assert str(folder) not in plan["flags"]
    assert {"-DGGML_VULKAN=ON", "-DGGML_RPC=ON"} <= set(plan["flags"].split())
    assert plan["targets"] == "llama-server llama-fit-params ggml-rpc-server"


def test_rpc_is_built_where_it_is_asked_for_only(machine: Machine) -> None:
    _, plain = machine.run("--backend", "cpu", "--dry-run")
    assert "-DGGML_RPC" not in plain
    assert "ggml-rpc-server" not in plain
    _, named = machine.run("--backend", "cpu", "--dry-run", "--targets", "ggml-rpc-server")
    assert "-DGGML_RPC=ON" in named
    assert named.count("ggml-rpc-server") == 1


def test_an_option_without_its_value_is_named(machine: Machine) -> None:
    status, text = machine.run("--vulkan-headers")
    assert status == 1
    assert "--vulkan-headers needs a value" in text


def test_doctor_says_what_the_script_says(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PATH", "CXX", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, machine.env[name])
    old = write_headers(machine.folder / "old", 239, content="")
    monkeypatch.setenv("LSWAP_VULKAN_HEADERS", str(old))
    (check,) = [c for c in examine().checks if (c.group, c.name) == ("Vulkan", "build")]
    assert check.state is CheckState.ABSENT
    said = machine.missing("--vulkan-headers", str(old))
    assert said == f"error: {check.detail}\n  what to do: {check.remedy}\n"
    with pytest.raises(EngineError, match="newer Vulkan headers"):
        check_build("vulkan")
    new = write_headers(machine.folder / "new", 290)
    monkeypatch.setenv("LSWAP_VULKAN_HEADERS", str(new))
    (check,) = [c for c in examine().checks if (c.group, c.name) == ("Vulkan", "build")]
    assert check.state is CheckState.OK
    assert "1.3.290" in check.detail


# --- fetching newer headers ----------------------------------------------------------------------

APT = """\
case "$*" in
*indextargets*)
    echo 'main https://mirror.test/debian-security/'
    echo 'contrib https://mirror.test/other/'
    echo 'main https://mirror.test/debian/'
    echo 'main https://mirror.test/second/' ;;
*update*) for word; do case $word in Dir::Etc::SourceList=*) cat "${word#*=}" ;; esac; done
    $FAKE_UPDATE ;;
*download*) touch libvulkan-dev.deb spirv-headers.deb ;;
*) exit 9 ;;
esac"""
DPKG = """\
[ "$1" = -x ] && mkdir -p "$3/usr/include/vulkan" "$3/usr/include/spirv/unified1" \\
    "$3/usr/share/cmake/SPIRV-Headers"
echo '#define VK_HEADER_VERSION 309' >"$3/usr/include/vulkan/vulkan_core.h"
echo 'VkLayerSettingsCreateInfoEXT' >>"$3/usr/include/vulkan/vulkan_core.h"
touch "$3/usr/include/spirv/unified1/spirv.hpp"
touch "$3/usr/share/cmake/SPIRV-Headers/SPIRV-HeadersConfig.cmake"
"""


def fetch(machine: Machine, **env: str) -> subprocess.CompletedProcess[str]:
    if not Path("/usr/share/keyrings/debian-archive-keyring.gpg").exists():
        pytest.skip("missing: Debian's keyring (apt-get install debian-archive-keyring)")
    write_program(machine.folder / "tools/apt-get", APT)
    write_program(machine.folder / "tools/dpkg", DPKG)
    script = find_script().with_name("fetch_vulkan_headers.sh")
    return subprocess.run(
        ["bash", str(script)],
        env={**machine.env, **env},
        capture_output=True,
        text=True,
        check=False,
    )


def test_headers_come_from_the_mirror_that_apt_uses(machine: Machine) -> None:
    done = fetch(machine, FAKE_UPDATE="true")
    assert done.returncode == 0, done.stderr
    assert "gpg] https://mirror.test/debian/ trixie main\n" in done.stdout
    status, text = machine.run("--check")
    assert status == 0, text
    folder = machine.folder / "cache/lswap/build"
    assert [path.name for path in folder.iterdir()] == ["vulkan-headers"]
    assert fetch(machine).stdout == f"already here: {folder}/vulkan-headers\n"


def test_a_mirror_without_the_release_is_named_and_leaves_nothing(machine: Machine) -> None:
    done = fetch(machine, FAKE_UPDATE="exit 100")
    assert done.returncode == 1
    assert "apt cannot read Debian trixie from this machine's mirror" in done.stderr
    assert "--vulkan-headers" in done.stderr
    assert list((machine.folder / "cache/lswap/build").iterdir()) == []
