"""What a hub reference names, and which files of a repository that is."""

from __future__ import annotations

import pytest

from llamaswap_py.hub.refs import (
    HubError,
    HubFile,
    HubRef,
    builds_of,
    choose,
    parse_ref,
    projector_of,
    quant_of,
)

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
    ],
)
def test_references_are_read_as_people_write_them(text: str, want: HubRef) -> None:
    assert parse_ref(text) == want


@pytest.mark.parametrize("text", ["", "model", "/b", "a/", "a/b/c", "a b/c", "../x"])
def test_what_names_no_repository_is_refused(text: str) -> None:
    with pytest.raises(HubError, match="names no repository"):
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


def test_without_a_usual_one_the_smallest_is_taken() -> None:
    builds = builds_of([HubFile("a-Q6_K.gguf", 6), HubFile("a-Q5_K_M.gguf", 5)])
    assert choose(HubRef("a/b"), builds).quant == "Q5_K_M"


def test_the_projector_is_the_f16_one() -> None:
    found = projector_of(REPO)
    assert found is not None
    assert found.path == "mmproj-F16.gguf"
    assert projector_of([HubFile("a.gguf", 1)]) is None
