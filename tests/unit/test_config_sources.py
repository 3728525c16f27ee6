"""A folder of files read as one: what adds up, what goes first, whose line a mistake is on."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamaswap_py.config.load import Origin, read_config
from llamaswap_py.config.sections import Config
from llamaswap_py.errors import ConfigError


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


def errors(folder: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read_config(folder)
    return str(caught.value).replace(f"{folder}/", "").splitlines()


def test_files_are_merged_in_the_order_of_their_names(tmp_path: Path) -> None:
    write(
        tmp_path,
        b_models="models: {b: {model: b.gguf}}\npolicy: {max_wait: 20s}\nlisten: '127.0.0.1:2'\n",
        a_base=(
            "policy: {max_wait: 10s, max_loaded: 2}\nlisten: ['127.0.0.1:1']\nvars: {x: 1}\n"
            "models: {a: {model: a.gguf}}\nmodel_dirs: [d1]\n"
        ),
        c_more="models:\n  c: {model: c.gguf}\nvars: {y: 2}\nmodel_dirs: [d2]\n",
        d_empty="# nothing\n",
    )
    (tmp_path / ".hidden.yaml").write_text("nonsense")
    (tmp_path / "keys.txt").write_text("nonsense")
    config = read_config(tmp_path)
    assert list(config.models) == ["a", "b", "c"]
    assert (config.policy.max_wait, config.policy.max_loaded) == (20, 2)
    assert [each.port for each in config.listen] == [2]
    assert config.vars == {"x": 1, "y": 2}
    assert config.model_dirs == (f"{tmp_path}/d1", f"{tmp_path}/d2")
    assert config.source == str(tmp_path)
    assert config.where("models.c") == f"{tmp_path}/c_more.yaml:2: models.c"
    assert config.where("policy.max_wait") == f"{tmp_path}/b_models.yaml:2: policy.max_wait"
    assert config.where("none") == f"{tmp_path}: none"


def test_the_same_preset_twice_names_both_files_and_lines(tmp_path: Path) -> None:
    write(
        tmp_path,
        a="models:\n  x: {model: x}\ngroups: {g: {exclusive: [x, y]}}",
        b="models:\n  y: {model: y}\n\n  x: {model: z}\ngroups: {g: {exclusive: [x, y]}}\n",
    )
    assert errors(tmp_path) == [
        "b.yaml:4: models.x: 'x' is already in a.yaml:2 - keep one of them",
        "b.yaml:5: groups.g: 'g' is already in a.yaml:3 - keep one of them",
    ]


def test_mistakes_name_the_file_they_are_in(tmp_path: Path) -> None:
    write(
        tmp_path,
        a="models:\n  x: {model: x, aliases: [n]}",
        b="modls: {}\nmodels:\n  y: {model: y, aliases: [n], ttl: '${t}m'}\n",
    )
    assert errors(tmp_path)[1].startswith("b.yaml:3: models.y.ttl: there is no variable ${t}")
    write(tmp_path, b="modls: {}\nmodels:\n  y: {model: y, aliases: [n], ttl: 5}\n")
    first, second, third = errors(tmp_path)
    assert first.startswith("b.yaml:1: modls: unknown key")
    assert second.startswith("b.yaml:3: models.y.ttl: 5 has no unit")
    assert third.startswith("b.yaml:3: models.y.aliases: 'n' already names models.x (a.yaml:2)")
    write(tmp_path, b="models: [")
    assert errors(tmp_path)[0].startswith("b.yaml:1:10: this is not YAML")
    write(tmp_path, b="- x")
    assert errors(tmp_path)[0].startswith("b.yaml:1: the file is a list")


def test_relative_paths_start_at_the_file_that_says_them(tmp_path: Path) -> None:
    write(tmp_path / "conf.d", more="models: {b: {model: b.gguf}}")
    write(tmp_path, main="models: {a: {model: a.gguf}}\n\n\n")
    config = Origin(tmp_path / "main.yaml", tmp_path / "conf.d").read()
    assert config.models["a"].model == f"{tmp_path}/a.gguf"
    assert config.models["b"].model == f"{tmp_path}/conf.d/b.gguf"


def test_variables_of_one_file_are_known_in_all(tmp_path: Path) -> None:
    write(tmp_path, a="vars: {root: /m}", b="models: {x: {model: '${root}/x'}}")
    config: Config = read_config(tmp_path)
    assert config.models["x"].model == "/m/x"


def test_a_folder_without_files_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no \*\.yaml file in it - .*lswap init"):
        read_config(tmp_path)
