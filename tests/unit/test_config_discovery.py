"""Folders of models: which files are one model, what it is called, and what the file says first."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llamaswap_py.cli.check import check
from llamaswap_py.config.discovery import Folder, FoundModel, GgufFile, models_in
from llamaswap_py.config.load import Origin, read_config
from llamaswap_py.config.preset_names import bad_name
from llamaswap_py.config.scan import scan_folder
from llamaswap_py.config.warnings import warnings
from llamaswap_py.errors import ConfigError


def found(*names: str, folder: str = "/m") -> dict[str, FoundModel]:
    files = [GgufFile(f"{folder}/{name}", f"{folder}/{name}", 1) for name in names]
    return {model.id: model for model in models_in([Folder(folder, tuple(files))])}


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"GGUF")


def test_files_and_folders_are_called_as_llama_cpp_calls_them() -> None:
    models = found("a.gguf", "gemma/x-Q4_K_M.gguf", "gemma/mmproj-F16.gguf", "gemma/mtp-x.gguf")
    assert set(models) == {"a", "gemma"}
    assert models["gemma"].file.path == "/m/gemma/x-Q4_K_M.gguf"
    assert models["gemma"].projector == "/m/gemma/mmproj-F16.gguf"
    assert models["gemma"].draft == "/m/gemma/mtp-x.gguf"
    assert models["a"].projector is None


def test_shards_are_one_model() -> None:
    shards = [f"big/big-Q8-0000{n}-of-00003.gguf" for n in (3, 1, 2)]
    models = found(*shards, "flat-00001-of-00002.gguf", "flat-00002-of-00002.gguf")
    assert set(models) == {"big", "flat"}
    assert models["big"].file.path == "/m/big/big-Q8-00001-of-00003.gguf"
    assert models["big"].size == 3
    assert models["flat"].file.path == "/m/flat-00001-of-00002.gguf"
    assert not found("cut-00002-of-00002.gguf"), "nothing can begin to load it"


def test_every_model_of_a_folder_is_found_and_of_deeper_ones() -> None:
    models = found("q/q-Q4_K_M.gguf", "q/q-Q8_0.gguf", "pub/repo/deep.gguf")
    assert set(models) == {"q-Q4_K_M", "q-Q8_0", "deep"}


def test_a_projector_goes_to_the_model_it_is_named_after() -> None:
    names = ("vl-7b-Q4_K_M.gguf", "other.gguf", "mmproj-vl-7b-f16.gguf", "mmproj-vl-7b-Q8_0.gguf")
    models = found(*names)
    assert models["vl-7b-Q4_K_M"].projector == "/m/mmproj-vl-7b-f16.gguf"
    assert models["other"].projector is None
    alone = found("x.gguf", "mmproj-whatever.gguf")
    assert alone["x"].projector == "/m/mmproj-whatever.gguf"


def test_two_models_of_one_name_get_two_names() -> None:
    models = found("a.gguf", "one/a.gguf", "one/b.gguf", "two/a.gguf", "two/c.gguf")
    assert set(models) == {"a", "one/a", "two/a", "b", "c"}
    again = models_in([Folder("/x", (GgufFile("/x/m.gguf", "/x/m.gguf"),))] * 2)
    assert [model.id for model in again] == ["m"]
    one, other = (Folder(d, (GgufFile(f"{d}/m.gguf", f"{d}/m.gguf"),)) for d in ("/p/x", "/q/x"))
    third = Folder("/r/x", (GgufFile("/r/x/m.gguf", "/r/x/m.gguf"),))
    assert [each.id for each in models_in([one, other, third])] == ["m", "x/m", "m-2"]


def test_what_is_no_model_is_no_preset_and_every_name_can_be_one() -> None:
    assert not found("x-imatrix.gguf", "ggml-vocab-bert.gguf", "imatrix_unsloth.gguf")
    (name,) = found("a,b.gguf")
    assert bad_name(name) is None


def test_a_draft_head_is_no_model_and_is_used_by_its_own() -> None:
    root = found("Big-Q4_0.gguf", "Big-Q8_0.gguf", "MTP/mtp-Big-Q4_0.gguf", "MTP/Big-Q8_0.gguf")
    assert {id: model.draft for id, model in root.items()} == {
        "Big-Q4_0": "/m/MTP/mtp-Big-Q4_0.gguf",
        "Big-Q8_0": "/m/MTP/Big-Q8_0.gguf",
    }
    deep = found("pub/Big/Big-Q8_0.gguf", "pub/Big/mtp/mtp-head-Q8_0.gguf", "Other.gguf")
    assert {id: model.draft for id, model in deep.items()} == {
        "Big-Q8_0": "/m/pub/Big/mtp/mtp-head-Q8_0.gguf",
        "Other": None,
    }
    # llama-server does not tell this kind by its file: it is left to `spec-type`.
    eagle = found("Big/Big-Q8_0.gguf", "Big/eagle3-Big-Q8_0.gguf")
    assert {id: model.draft for id, model in eagle.items()} == {"Big": None}
    assert set(found("mtp/Model-Q8_0.gguf")) == {"mtp"}, "no model lies above it: it is one"


def test_a_draft_head_is_paired_by_every_quantisation_that_has_a_name() -> None:
    models = found(
        "Big-NVFP4.gguf", "Big-TQ1_0.gguf", "MTP/mtp-Big-NVFP4.gguf", "mtp-Big-Q8_0.gguf"
    )
    assert {id: model.draft for id, model in models.items()} == {
        "Big-NVFP4": "/m/MTP/mtp-Big-NVFP4.gguf",
        "Big-TQ1_0": "/m/MTP/mtp-Big-NVFP4.gguf",  # the nearest number of bits
    }


def test_the_file_goes_first_by_path_and_by_name(tmp_path: Path) -> None:
    put(tmp_path, "models/mine.gguf", "models/taken.gguf", "models/alias.gguf", "models/new.gguf")
    (tmp_path / "models" / "link.gguf").symlink_to("mine.gguf")
    put(tmp_path, "other.gguf")
    (tmp_path / "c.yaml").write_text(
        "model_dirs: [models]\n"
        "defaults: {ttl: 5m}\n"
        "default_model: new\n"
        "models:\n"
        "  big: {model: models/mine.gguf, aliases: [alias]}\n"
        "  taken: {model: other.gguf}\n"
    )
    config = read_config(tmp_path / "c.yaml")
    assert list(config.models) == ["big", "taken", "new"]
    assert config.models["taken"].model == str(tmp_path / "other.gguf")
    assert config.models["new"].ttl == 300


def test_a_folder_that_is_not_there_is_a_warning_while_there_are_models(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("models: {a: {model: a.gguf}}\nmodel_dirs: [gone]\n")
    (warning,) = warnings(read_config(tmp_path / "c.yaml"))
    assert warning.startswith(f"{tmp_path}/c.yaml:2: model_dirs: {tmp_path}/gone: No such file")
    (tmp_path / "c.yaml").write_text("model_dirs: [gone]\n")
    with pytest.raises(ConfigError, match=r"c.yaml:1: model_dirs: there are no models: nothing"):
        read_config(tmp_path / "c.yaml")


def test_without_a_file_the_context_of_every_model_is_chosen(tmp_path: Path) -> None:
    put(tmp_path, "a.gguf", "b/b.gguf", "b/mmproj.gguf")
    config = Origin(model_dirs=(tmp_path,)).read()
    assert config.models["a"].args == {"parallel": 2, "kv-unified": True}
    assert config.models["a"].fit.chooses
    assert config.models["b"].args["mmproj"] == str(tmp_path / "b" / "mmproj.gguf")
    with pytest.raises(ConfigError, match="nothing was found in"):
        Origin(model_dirs=(tmp_path / "none",)).read()


def test_a_scan_follows_links_but_not_in_circles(tmp_path: Path) -> None:
    put(tmp_path, "real/a.gguf", ".hidden/b.gguf", "x/blobs/c.gguf", "x/d.txt")
    (tmp_path / "here").symlink_to("real")
    (tmp_path / "real" / "loop").symlink_to(tmp_path)
    (tmp_path / "gone.gguf").symlink_to("nowhere")
    folder = scan_folder(f"{tmp_path}/")
    assert folder.path == str(tmp_path)
    assert {os.path.basename(file.real) for file in folder.files} == {"a.gguf", "c.gguf"}
    assert len(models_in([folder])) == 2
    assert scan_folder(str(tmp_path / "none")).problem == "No such file or directory"


def test_the_cache_of_hugging_face_is_one_of_these_folders(tmp_path: Path) -> None:
    put(tmp_path, "models--u--r/blobs/abc")
    snapshot = tmp_path / "models--u--r" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (snapshot / "r-Q4_K_M.gguf").symlink_to("../../blobs/abc")
    (model,) = models_in([scan_folder(str(tmp_path))])
    assert model.id == "r-Q4_K_M"
    assert model.file.path == str(snapshot / "r-Q4_K_M.gguf")


SETTINGS = """
model_dirs: [models]
defaults: {args: {ctx-size: 1024}}
models:
  GLM-4.5-Air: {args: {temp: 0.6, no-mmproj: true}, aliases: [glm, GLM-4.5-Air]}
  Qwen3-8B-Q4_K_M: {args: {ctx-size: 512}, preload: true}
"""


def test_a_preset_without_a_file_is_settings_for_the_model_of_its_name(tmp_path: Path) -> None:
    """As a section of llama.cpp's preset files is, beside `--models-dir`."""
    files = ("GLM-4.5-Air/x-00001-of-00001.gguf", "GLM-4.5-Air/mmproj-F16.gguf")
    put(tmp_path / "models", *files, "Qwen3-8B-Q4_K_M.gguf", "other.gguf")
    (tmp_path / "c.yaml").write_text(SETTINGS)
    models = read_config(tmp_path / "c.yaml").models
    assert list(models) == ["GLM-4.5-Air", "Qwen3-8B-Q4_K_M", "other"]
    glm, qwen = models["GLM-4.5-Air"], models["Qwen3-8B-Q4_K_M"]
    assert glm.model == f"{tmp_path}/models/{files[0]}"
    assert glm.args == {
        "mmproj": f"{tmp_path}/models/{files[1]}",
        "ctx-size": 1024,
        "temperature": 0.6,
        "no-mmproj": True,
    }
    assert glm.aliases == ("glm",), "a name of its own is no other name"
    assert qwen.preload
    assert qwen.args == {"ctx-size": 512}
    assert models["other"].args == {"ctx-size": 1024}


def test_settings_for_a_model_that_is_nowhere_are_named(tmp_path: Path) -> None:
    put(tmp_path / "models", "Qwen3-8B-Q4_K_M.gguf")
    (tmp_path / "c.yaml").write_text(SETTINGS)
    broken = read_config(tmp_path / "c.yaml").broken
    assert list(broken) == ["GLM-4.5-Air"], "the others are served"
    ((where, message, _),) = broken["GLM-4.5-Air"]
    assert where == f"{tmp_path}/c.yaml:5: models.GLM-4.5-Air"
    assert message == "it has no file, and model_dirs have no model of this name"
    (tmp_path / "c.yaml").write_text("models: {a: {ttl: 5m}}")
    with pytest.raises(ConfigError, match="the preset names no file"):
        read_config(tmp_path / "c.yaml")


def test_a_mistake_of_a_found_model_names_its_file(tmp_path: Path) -> None:
    """Not keys of a configuration that nobody wrote."""
    (tmp_path / "lfs.v1.gguf").write_text("version https://git-lfs.github.com/spec/v1")
    report = check(Origin(model_dirs=(tmp_path,)))
    (problem,) = report.models[0].problems
    assert problem.startswith("models folder: lfs.v1.gguf: ")
    assert "models.lfs" not in problem
