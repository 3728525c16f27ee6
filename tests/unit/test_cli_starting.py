"""The first hour: which configuration `lswap up` means, and what `lswap init` writes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llamaswap_py.cli import init, service
from llamaswap_py.cli.check import check
from llamaswap_py.cli.init import choose_origin, usual_files, usual_model_dirs
from llamaswap_py.config.discovery import FoundModel, GgufFile
from llamaswap_py.config.load import Origin, read_config
from llamaswap_py.demo.tiny_gguf import write_tiny_model
from llamaswap_py.devices import Device
from llamaswap_py.errors import ConfigError
from llamaswap_py.units import GIB
from tests.estimate.gguf_bytes import header


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Begin in an empty home."""
    for name in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "LLAMA_CACHE", "HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "home"
    (folder / "here").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(folder / "here")
    return folder


def put(path: Path, text: str = "GGUF") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_nothing_at_all_is_one_line_with_remedies() -> None:
    with pytest.raises(ConfigError) as caught:
        choose_origin(None, None, ())
    said = str(caught.value)
    assert "\n" not in said
    for word in ("lswap.yaml", "~/models", "--models-dir", "lswap pull", "~/.cache/huggingface"):
        assert word in said


def test_a_relative_xdg_folder_is_ignored(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The XDG specification wants it: such a path would depend on the folder one stands in."""
    for name in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "here")
    assert usual_files()[1] == home / ".config/lswap/config.yaml"
    assert {home / ".cache/llama.cpp", home / ".cache/huggingface/hub"} <= set(usual_model_dirs())
    unit = put(home / ".config/systemd/user/mine.service", service.MARK)
    assert (True, "mine", [unit]) in service.installed()


def test_the_usual_places_in_their_order(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(home / "models" / "a.gguf")
    put(home / ".cache" / "llama.cpp" / "b.gguf")
    put(home / ".lmstudio" / "models" / "pub" / "repo" / "c.gguf")
    origin = choose_origin(None, None, ())
    assert set(origin.read().models) == {"a", "b", "c"}
    said = capsys.readouterr().err
    assert (
        "serving 3 models from ~/models (1), ~/.cache/llama.cpp (1), ~/.lmstudio/models (1)" in said
    )
    config = put(home / ".config" / "lswap" / "config.yaml", "models: {x: {model: x}}")
    assert choose_origin(None, None, ()) == Origin(config)
    here = put(Path("lswap.yaml"), "models: {x: {model: x}}")
    assert choose_origin(None, None, ()) == Origin(here)
    assert "using ./lswap.yaml" in capsys.readouterr().err


def test_what_is_named_is_taken(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, file = home / "conf.d", home / "c.yaml"
    folder.mkdir()
    assert choose_origin(file, None, ()) == Origin(file)
    assert choose_origin(folder, None, ()) == Origin(folder=folder)
    assert choose_origin(file, folder, (home,)) == Origin(file, folder, (home,))
    assert choose_origin(None, None, (home,)) == Origin(model_dirs=(home,))
    assert capsys.readouterr().err == ""
    with pytest.raises(ConfigError, match="two configuration folders"):
        choose_origin(folder, folder, ())
    with pytest.raises(ConfigError, match="--models-dir none: No such file or directory"):
        choose_origin(None, None, (Path("none"),))


def test_the_places_of_other_programs_can_be_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_CACHE", "/x/cache")
    monkeypatch.setenv("HF_HOME", "/x/hf")
    assert {Path("/x/cache"), Path("/x/hf/hub")} <= set(usual_model_dirs())


def test_init_writes_a_file_that_check_finds_fine(
    home: Path,
    capsys: pytest.CaptureFixture[str],
    llama_server: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LSWAP_LLAMA_SERVER", llama_server)
    names = ("a.gguf", "it's: one.gguf", "${x}.gguf", "true.gguf", "7.gguf", "é.gguf")
    for name in (*names, "v/v.gguf"):
        write_tiny_model(put(home / "models" / name), "Hello.")
    projector = put(home / "models/v/mmproj-v.gguf")
    projector.write_bytes(header({"general.architecture": "clip"}))
    path = Path("new") / "lswap.yaml"
    init.run(path, (), force=False)
    assert "7 models found" in capsys.readouterr().out
    config = read_config(path)
    assert {os.path.basename(one.model) for one in config.models.values()} == {*names, "v.gguf"}
    assert config.models["v"].args["mmproj"] == str(home / "models" / "v" / "mmproj-v.gguf")
    report = check(Origin(path))
    assert report.ok, report
    with pytest.raises(ConfigError, match="already"):
        init.run(path, (), force=False)
    path.write_text("mine")
    init.run(path, (), force=True)
    assert read_config(path) == config


def test_init_where_there_is_nothing_names_a_model_to_fetch(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LSWAP_LLAMA_SERVER", "/nowhere")
    init.run(Path("c.yaml"), (), force=False)
    assert "lswap engine build" in capsys.readouterr().err
    (preset,) = read_config("c.yaml").models.values()
    assert preset.hf is not None
    init.run(Path("-"), (), force=False)
    assert capsys.readouterr().out == Path("c.yaml").read_text().replace("c.yaml", "-")


def test_what_fits_nowhere_is_commented_out() -> None:
    def model(name: str, size: int) -> FoundModel:
        file = GgufFile(f"/m/{name}.gguf", f"/m/{name}.gguf", size)
        return FoundModel(name, file, (file,))

    devices = [Device("CUDA0", 24 * GIB, GIB, "nvml"), Device("host", 64 * GIB, GIB, "psutil")]
    models = [model("small", 4 * GIB), model("large", 40 * GIB), model("huge", 100 * GIB)]
    text = init.config_text(init.Machine(devices, None, models, ["/m"], [Path("/m")]), "c.yaml")
    assert "  small:    # 4 GiB, fits CUDA0, host\n" in text
    assert "  large:    # 40 GiB, fits host\n" in text
    assert "  # huge:    # 100 GiB, more than any device here has\n" in text
    assert "#   CUDA0: 24 GiB (nvml)\n" in text
    assert "# devices: {CUDA0: 24GiB, host: 64GiB}" in text
    assert "# model_dirs: [/m]\n" in text
