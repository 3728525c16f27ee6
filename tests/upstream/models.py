"""Tiny models that stand in for those which llama.cpp's server tests fetch from Hugging Face."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from llamaswap_py.demo.tiny_gguf import write_tiny_model

_COMMIT: Final = "0" * 40
# Words that the tests look for, so that a test of anything else is not lost to them.
_SENTENCE: Final = (
    "the wise kind owl said to little Jack and the girl going to bed: "
    "Ann had a small shiny special very big answer for Dad and Jimmy in the park "
)
# One of those that llama-server knows without --jinja, which most tests switch off.
_CHATML: Final = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
FILES: Final = {
    "ggml-org/test-model-stories260K": ("stories260K-F32.gguf",),
    "ggml-org/test-model-stories260K-infill": ("stories260K-infill-F32.gguf",),
    "ggml-org/stories15M_MOE": ("stories15M_MOE-F16.gguf",),
    "ggml-org/tinygemma3-GGUF": ("tinygemma3-Q8_0.gguf",),
    "ggml-org/models": (
        "tinyllamas/stories260K.gguf",
        "bert-bge-small/ggml-model-f16.gguf",
        "jina-reranker-v1-tiny-en/ggml-model-f16.gguf",
    ),
}
"""Repository -> the files of it that a stand-in is made for."""
DRAFT: Final = "stories15M-q4_0.gguf"
"""A file that a test fetches by its address."""


def write_cache(folder: Path) -> None:
    """Fill a cache of Hugging Face's layout, unless it is there."""
    model = folder / "stand-in.gguf"
    if not model.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_tiny_model(model, _SENTENCE, loop=True, layers=4, chat_template=_CHATML)
    for repo, names in FILES.items():
        place = folder / f"models--{repo.replace('/', '--')}"
        (place / "refs").mkdir(parents=True, exist_ok=True)
        (place / "refs" / "main").write_text(_COMMIT)
        for name in names:
            link = place / "snapshots" / _COMMIT / name
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.symlink_to(model)
