"""What a hub reference names, and which files of a repository that is."""

from __future__ import annotations

import pytest

from llamaswap_py.hub.refs import (
    HubError,
    HubFile,
    HubRef,
    builds_of,
    choose,
    heads_of,
    parse_ref,
    projector_of,
)
from llamaswap_py.llamacpp.model_files import quant_of, split_quant

REPO = [
    HubFile("README.md", 100),
    HubFile("Qwen3-8B-Q4_K_M.gguf", 5_000),
    HubFile("Qwen3-8B-Q8_0.gguf", 8_000),
    HubFile("Qwen3-8B-IQ2_XXS.gguf", 2_000),
    HubFile("UD/Qwen3-8B-UD-Q4_K_XL-00001-of-00002.gguf", 3_000),
    HubFile("UD/Qwen3-8B-UD-Q4_K_XL-00002-of-00002.gguf", 3_100),
    HubFile("BF16/Qwen3-8B-BF16-00001-of-00002.gguf", 9_000),
    HubFile("mmproj-F16.gguf", 900),
    HubFile("mmproj-BF16.gguf", 800),
    HubFile("imatrix_unsloth.gguf", 10),
]


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("ggml-org/gemma-3-4b-it-GGUF", HubRef("ggml-org/gemma-3-4b-it-GGUF")),
        ("a/b:Q4_K_M", HubRef("a/b", "Q4_K_M")),
        ("hf.co/a/b:q8_0", HubRef("a/b", "q8_0")),
        ("https://huggingface.co/a/b", HubRef("a/b")),
        ("https://huggingface.co/a/b/tree/main", HubRef("a/b")),
        ("a/b:file.gguf", HubRef("a/b", "file.gguf")),
        ("a/b:one/two/file.gguf", HubRef("a/b", "one/two/file.gguf")),
    ],
)
def test_references_are_read_as_people_write_them(text: str, want: HubRef) -> None:
    assert parse_ref(text) == want


@pytest.mark.parametrize("text", ["", "model", "/b", "a/", "a/b/c", "a b/c", "../x"])
def test_what_names_no_repository_is_refused(text: str) -> None:
    with pytest.raises(HubError, match="is not a repository"):
        parse_ref(text)


@pytest.mark.parametrize(
    ("path", "want"),
    [
        ("Qwen3-8B-Q4_K_M.gguf", "Q4_K_M"),
        ("x-UD-IQ1_S-00001-of-00003.gguf", "UD-IQ1_S"),
        ("model.Q8_0.gguf", "Q8_0"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("BF16/model-00001-of-00002.gguf", "BF16"),
        ("model.gguf", ""),
        ("Q4ever.gguf", ""),
    ],
)
def test_the_quantisation_is_in_the_name(path: str, want: str) -> None:
    assert quant_of(path) == want


@pytest.mark.parametrize(
    ("stem", "want"),
    [
        ("Qwen3-8B-Q4_K_M", ("Qwen3-8B", "Q4_K_M")),
        ("x.UD-IQ1_S", ("x", "UD-IQ1_S")),
        ("gpt-oss-20b-mxfp4", ("gpt-oss-20b", "MXFP4")),
        ("big-nvfp4_moe", ("big", "NVFP4_MOE")),
        ("two-Q4_0-of-Q8_0", ("two-Q4_0-of", "Q8_0")),
        ("Big-Q8_0-head", ("Big-Q8_0-head", "")),
        ("F16", ("F16", "")),
        ("model", ("model", "")),
        ("", ("", "")),
    ],
)
def test_the_quantisation_at_the_end_of_a_name(stem: str, want: tuple[str, str]) -> None:
    assert split_quant(stem) == want


def test_the_models_of_a_repository_are_whole_and_sorted_by_size() -> None:
    builds = builds_of(REPO)
    assert [(build.quant, build.size) for build in builds] == [
        ("IQ2_XXS", 2_000),
        ("Q4_K_M", 5_000),
        ("UD-Q4_K_XL", 6_100),
        ("Q8_0", 8_000),
    ]
    assert [len(build.files) for build in builds] == [1, 1, 2, 1]


@pytest.mark.parametrize(
    ("tag", "want"),
    [
        ("", "Q4_K_M"),
        ("q8_0", "Q8_0"),
        ("UD-Q4_K_XL", "UD-Q4_K_XL"),
        ("Qwen3-8B-IQ2_XXS.gguf", "IQ2_XXS"),
        ("8B-Q8_0", "Q8_0"),
    ],
)
def test_a_tag_chooses_one(tag: str, want: str) -> None:
    assert choose(HubRef("a/b", tag), builds_of(REPO)).quant == want


def test_a_tag_that_is_not_there_says_what_is() -> None:
    with pytest.raises(HubError, match="a/b has no Q6_K - it has IQ2_XXS, Q4_K_M"):
        choose(HubRef("a/b", "Q6_K"), builds_of(REPO))
    with pytest.raises(HubError, match="no GGUF model"):
        choose(HubRef("a/b"), builds_of([HubFile("model.safetensors", 9)]))


HEADED = [
    HubFile("Big-27B-Q4_0.gguf", 4_000),
    HubFile("Big-27B-Q8_0.gguf", 8_000),
    HubFile("MTP/mtp-Big-27B-Q4_0.gguf", 40),
    HubFile("MTP/mtp-Big-27B-Q8_0.gguf", 80),
    HubFile("MTP/Big-27B-Q8_0-head.gguf", 80),
    HubFile("eagle3-Big-27B-Q4_K_M.gguf", 50),
    HubFile("Big-27B-dflash-Q4_K_M.gguf", 50),
    HubFile("dspark-Big-27B-BF16.gguf", 50),
    HubFile("mmproj-Big-27B-F16.gguf", 50),
    HubFile("Big-27B-Q4_K_M.imatrix.gguf", 10),
]


def _named(tag: str, *paths: str) -> str:
    return choose(HubRef("a/b", tag), builds_of([HubFile(path, 9) for path in paths])).files[0].path


@pytest.mark.parametrize(
    ("tag", "want"), [("", "Big-27B-Q8_0.gguf"), ("Q4_0", "Big-27B-Q4_0.gguf")]
)
def test_what_lies_beside_a_model_is_never_the_model(tag: str, want: str) -> None:
    assert len(builds_of(HEADED)) == 2
    assert choose(HubRef("a/b", tag), builds_of(HEADED)).files[0].path == want


@pytest.mark.parametrize(
    ("tag", "paths", "want"),
    [
        ("Q4_K_XL", ["B-UD-Q4_K_XL-00001-of-00001.gguf", "B-Q4_K_M.gguf"], 0),
        ("q4_k_xl", ["UD-Q4_K_XL/B-UD-Q4_K_XL-00001-of-00001.gguf", "B-Q4_K_M.gguf"], 0),
        ("Q4_K_XL", ["B-UD-Q4_K_XL.gguf", "B-Q4_K_XL.gguf"], 1),  # the very name goes first
        ("F16", ["B-BF16.gguf", "B-F16.gguf"], 1),
        ("F16", ["B-BF16.gguf"], 0),
        ("Q4_K_M", ["Q4_K_M/model-00001-of-00001.gguf", "Q8_0/model-00001-of-00001.gguf"], 0),
        ("B-Q8_0", ["A-Q8_0.gguf", "B-Q8_0.gguf"], 1),
        ("", ["A-Q8_0.gguf", "Z-UD-Q4_K_M.gguf"], 1),  # Q4_K_M, Q8_0, then the first by path
        ("", ["A-IQ1_S.gguf", "Z-Q8_0.gguf"], 1),
        ("", ["A-Q6_K.gguf", "A-Q5_K_M.gguf"], 1),
        ("", ["mtp-A-Q4_K_M.gguf", "A-mtp-Q4_K_M.gguf"], 1),  # somebody named the model so
    ],
)
def test_tags_are_llama_cpp_s(tag: str, paths: list[str], want: int) -> None:
    assert _named(tag, *paths) == paths[want]
    assert _named(tag, *reversed(paths)) == paths[want], "the order of the listing is not asked"


def test_a_head_is_that_of_the_same_quantisation() -> None:
    heads = heads_of(HEADED, "Big-27B-Q8_0.gguf")
    assert heads["draft-mtp"].path == "MTP/Big-27B-Q8_0-head.gguf"
    assert heads_of(HEADED, "Big-27B-Q4_0.gguf")["draft-mtp"].path == "MTP/mtp-Big-27B-Q4_0.gguf"
    assert set(heads) == {"draft-mtp", "draft-dspark", "draft-dflash", "draft-eagle3"}
    assert next(iter(heads)) == "draft-mtp", "the order in which llama.cpp prefers them"
    assert not heads_of(REPO, "Qwen3-8B-Q8_0.gguf")


def test_sidecars_of_another_folder_s_model_are_not_taken() -> None:
    files = [
        *(HubFile("A/a-Q8_0.gguf", 9), HubFile("A/mmproj-BF16.gguf", 1)),
        *(HubFile("B/b-Q8_0.gguf", 9), HubFile("B/mtp-b.gguf", 1), HubFile("B/mmproj-F16.gguf", 1)),
        HubFile("C/c-Q8_0.gguf", 9),
    ]
    taken = {name: projector_of(files, f"{name}/x.gguf") for name in "ABC"}
    assert {name: one and one.path for name, one in taken.items()} == {
        **{"A": "A/mmproj-BF16.gguf", "B": "B/mmproj-F16.gguf"},
        "C": None,
    }
    assert not heads_of(files, "A/a-Q8_0.gguf")
    assert heads_of(files, "B/b-Q8_0.gguf")["draft-mtp"].path == "B/mtp-b.gguf"


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("qwen3:8b", "lswap pull Qwen/Qwen3-8B-GGUF"),
        ("qwen3:30b", "lswap pull Qwen/Qwen3-30B-A3B-GGUF"),
        ("gemma3:4b", "lswap pull ggml-org/gemma-3-4b-it-GGUF"),
        ("llama3.2", "lswap pull USER/REPO"),
        ("mistral:latest", "search=mistral)"),
    ],
)
def test_a_name_of_ollama_gets_the_right_command(name: str, command: str) -> None:
    with pytest.raises(HubError) as caught:
        parse_ref(name)
    assert command in caught.value.remedy
    assert "lswap import ollama" in caught.value.remedy


def test_the_projector_is_the_f16_one() -> None:
    found = projector_of(REPO)
    assert found is not None
    assert found.path == "mmproj-F16.gguf"
    assert projector_of([HubFile("a.gguf", 1)]) is None
