"""`python -m bench.gpu`, all of it, on a stand-in: the driver's library and the engine's devices.

The engine is the one for the processor behind a script which says that it has a CUDA device, and
whose llama-fit-params counts main memory as that device. The stand-in for NVML counts what the
processes of this engine hold of main memory.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import psutil
import pytest

from bench.gpu import _measure_apart
from bench.gpu_card import Card
from bench.gpu_sections import SECTIONS, Section, measure_margin
from llamaswap_py.devices.nvml import NvmlMeter
from llamaswap_py.llamacpp.binaries import locate_engine
from tests.devices.nvml_fakes import GIB, build_library, gpu
from tests.unit.engine_fakes import write_script

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

UUID = "GPU-01234567-89ab-cdef-0123-456789abcdef"
LISTED = "  CUDA0: NVIDIA RTX (24000 MiB, 23000 MiB free)"
_WITHOUT_DEVICES = """
unset CUDA_VISIBLE_DEVICES
n=$#
while [ $n -gt 0 ]; do
    word=$1; shift; n=$((n - 1))
    case $word in
    --device | -dev) shift; n=$((n - 1)) ;;
    *) set -- "$@" "$word" ;;
    esac
done
"""


def _counted_first(folder: Path) -> str:
    """Return lines of a script that wait until the driver in `folder` counts the process.

    A driver counts a process from its first byte on; the stand-in looks from time to time.
    """
    return f"""if [ -d {folder} ]; then
    : > {folder}/pid-$$; left=1000
    until grep -q "^proc 0 $$ " {folder}/script || [ $left = 0 ]; do
        sleep 0.01; left=$((left - 1))
    done
fi
"""


@pytest.fixture
def engine(llama_server: str, tmp_path: Path) -> Path:
    """An engine for a card, as far as it tells."""
    fit_params = f"{os.path.dirname(llama_server)}/llama-fit-params"
    if not os.access(fit_params, os.X_OK):
        pytest.skip("missing: llama-fit-params")
    body = f"""# ggml_cuda_init
for word in "$@"; do
    case $word in --list-devices) printf 'Available devices:\\n{LISTED}\\n'; exit ;; esac
done
{_WITHOUT_DEVICES}{_counted_first(tmp_path / "nvml")}exec {llama_server} "$@" """
    server = write_script(tmp_path / "engine" / "llama-server", body)
    as_device = 's/"kind":"host","name":"Host"/"kind":"device","name":"CUDA0"/; s/^Host /CUDA0 /'
    write_script(
        server.with_name("llama-fit-params"),
        f'{_WITHOUT_DEVICES}set -- {fit_params} "$@"\n"$@" | sed \'{as_device}\'',
    )
    return server


@contextmanager
def nvml(folder: Path) -> Iterator[dict[str, str]]:
    """Yield an environment with a driver that counts the processes of the engine as they come."""
    folder.mkdir()
    build_library("fake_nvml.c", folder / "libnvidia-ml.so.1")
    script, ended = folder / "script", threading.Event()

    def write() -> None:
        held = dict(_held_by(folder))
        lines = [gpu(UUID, "01", used=sum(held.values()) + GIB // 4)]
        lines += [f"proc 0 {pid} {size} C" for pid, size in held.items()]
        new = script.with_suffix(".new")
        new.write_text("\n".join(lines) + "\n")
        new.replace(script)

    def go_on() -> None:
        while not ended.wait(0.1):
            write()

    write()
    writing = threading.Thread(target=go_on)
    writing.start()
    try:
        yield {"LD_LIBRARY_PATH": str(folder), "FAKE_NVML": str(script)}
    finally:
        ended.set()
        writing.join()


def _held_by(folder: Path) -> Iterator[tuple[int, int]]:
    """Yield the processes that wait to be counted, or were, and the bytes that each holds."""
    for process in psutil.Process().children(recursive=True):
        try:
            if (folder / f"pid-{process.pid}").exists():
                yield process.pid, process.memory_info().rss
        except psutil.Error:  # it has ended
            continue


def run(engine: Path, page: Path, env: dict[str, str], *args: str) -> tuple[int, str]:
    kept = {name: value for name, value in os.environ.items() if "_VISIBLE_" not in name}
    argv = [sys.executable, "-m", "bench.gpu", "--tiny", "--minutes", "30", *args]
    argv += ["--engine", str(engine), "--folder", str(page.parent), "--write", str(page)]
    done = subprocess.run(
        argv,
        env={**kept, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def page(tmp_path: Path) -> Path:
    page = tmp_path / "page.md"
    page.write_text(
        "before\n<!-- table: python -m bench.gpu --write docs/memory.md -->\n"
        "<!-- end of table -->\nafter\n"
    )
    return page


@pytest.mark.timeout(900)  # it takes 40 s of CPU time
def test_every_section_has_a_table(engine: Path, page: Path, tmp_path: Path) -> None:
    with nvml(tmp_path / "nvml") as env:
        status, said = run(engine, page, env)
    assert status == 0, said
    written = page.read_text()
    assert written.startswith("before\n")
    assert written.endswith("after\n")
    assert "NVIDIA RTX (CUDA0, 24 GiB)" in written
    assert "Tiny models: the figures mean nothing." in written
    assert "Not measured" not in written
    parts = dict(re.findall(r"^### (.+)\n\n((?:(?!### ).*\n)+)", written, re.MULTILINE))
    assert list(parts) == [one.title for one in SECTIONS]
    rows = [line for line in parts["Estimates against NVML"].splitlines() if "process" in line]
    assert len(rows) == 5
    assert re.search(r"\| alpha +\| +\d", parts["Two models beside each other"])
    budget = parts["The margin under load"].splitlines()[2].split("|")
    # The stand-in looks at one process after another: it may count one that ends and its successor.
    margin, left = (int(cell.replace(",", "")) for cell in budget[2:4])
    assert budget[4].strip() == ("kept" if left >= margin else "**broken**")
    assert int(budget[5]) > 0
    assert int(budget[6]) == 0
    assert int(budget[7]) > 0
    assert "other programs took memory" in parts["A foreign process takes memory"]
    assert "with read-ahead" in parts["What a swap costs"]
    assert "keep_kv" in parts["`keep_kv` on the card"]


@pytest.mark.timeout(900)
def test_a_section_that_fails_leaves_the_others_standing(
    engine: Path, llama_server: str, page: Path, tmp_path: Path
) -> None:
    """The server behind the engine ends at once, so only what asks it alone goes wrong."""
    said = engine.read_text()
    ends = "case $* in *ctx-size*) exit 7 ;; esac\n"
    engine.write_text(said.replace(f"exec {llama_server}", f"{ends}exec {llama_server}"))
    with nvml(tmp_path / "nvml") as env:
        status, _ = run(engine, page, env, "--only", "together", "estimates")
    assert status == 1
    written = page.read_text()
    assert re.search(r"### Two models beside each other\n\nNot measured: .*alpha answered", written)
    assert "| moe" in written


def test_a_device_that_the_driver_does_not_know(engine: Path, page: Path, tmp_path: Path) -> None:
    engine.write_text(engine.read_text().replace("NVIDIA RTX", "NVIDIA Another"))
    with nvml(tmp_path / "nvml") as env:
        status, said = run(engine, page, env)
    assert status == 2
    assert "NVML does not know CUDA0 (NVIDIA Another)" in said


def test_a_section_that_hangs_is_ended(engine: Path, tmp_path: Path) -> None:
    """The engine never lists its devices. It is ended with the section, after its time."""
    nap = ["sleep", str(1000 + os.getpid())]
    said = engine.read_text().replace("printf", f"{' '.join(nap)}; printf")
    hanging = write_script(tmp_path / "hanging" / "llama-server", said.partition("\n")[2])
    card = Card(locate_engine(str(engine)), "CUDA0", "RTX", GIB, UUID, NvmlMeter(UUID, "01"))
    card = replace(card, engine=replace(card.engine, path=hanging))
    section = Section("margin", "The margin", measure_margin, 2.0)
    asked = argparse.Namespace(tiny=False, folder=tmp_path)
    text, status = _measure_apart(section, card, asked, time.monotonic() + 60)
    assert (text, status) == ("Not measured: it was not done in 2 s.", 1)
    assert not [one.pid for one in psutil.process_iter(["cmdline"]) if one.info["cmdline"] == nap]


def test_no_section_begins_after_the_last_minute(engine: Path, tmp_path: Path) -> None:
    card = Card(locate_engine(str(engine)), "CUDA0", "RTX", GIB, UUID, NvmlMeter(UUID, "01"))
    asked = argparse.Namespace(tiny=True, folder=tmp_path)
    text, status = _measure_apart(SECTIONS[0], card, asked, time.monotonic())
    assert (text, status) == ("Not measured: the time is over.", 1)
