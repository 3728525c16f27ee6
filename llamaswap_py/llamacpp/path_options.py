"""Options of llama-server that name files and folders. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from llamaswap_py.llamacpp.options import Given

PROJECTOR: Final = "mmproj"
DRAFT_MODEL: Final = "model-draft"
PATH_OPTIONS: Final = frozenset(
    {
        "mmproj",
        "model-draft",
        "grammar-file",
        "json-schema-file",
        "chat-template-file",
        "slot-save-path",
        "media-path",
        "lookup-cache-static",
        "lookup-cache-dynamic",
        "webui-config-file",
        "mcp-servers-config",
        "video-ffmpeg-dir",
        "log-prompts-dir",
        "path",
    }
)
"""Options with one path as their value."""

PATH_LISTS: Final = frozenset({"lora", "lora-scaled", "control-vector", "control-vector-scaled"})
"""Options with several paths as their value, separated by commas, some followed by `:SCALE`."""

_FILES: Final = (
    *(PROJECTOR, DRAFT_MODEL),
    *("grammar-file", "json-schema-file", "chat-template-file"),
)
_LISTS: Final = ("lora", "control-vector")
_SCALED: Final = ("lora-scaled", "control-vector-scaled")
_FOLDERS: Final = ("media-path", "slot-save-path")


def files_named(given: Given) -> Iterator[tuple[str, str]]:
    """Yield each file that an option names and a load reads, and the option."""
    for option in (*_FILES, *_LISTS, *_SCALED):
        value = given.args.get(option)
        for text in value if isinstance(value, tuple) else (value,):
            if not isinstance(text, str):
                continue
            for file in [text] if option in _FILES else text.split(","):
                yield file.rpartition(":")[0] if option in _SCALED else file, option


def folders_named(given: Given) -> Iterator[tuple[str, str]]:
    """Yield each folder that an option names, and the option."""
    for option in _FOLDERS:
        if isinstance(folder := given.args.get(option), str):
            yield folder, option


def decides_projector(args: Mapping[str, object]) -> bool:
    """Return whether the options say which projector there is, or that there is none."""
    return bool({PROJECTOR, f"no-{PROJECTOR}"} & args.keys())
