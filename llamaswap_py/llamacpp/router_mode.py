"""llama.cpp's router mode, which lswap replaces: words for states, keys of presets. Pure.

They are those of tools/server/server-models.cpp and common/preset.cpp (b11434).
"""

from __future__ import annotations

from typing import Final

_STATUS: Final[dict[str, str]] = {
    "downloading": "downloading",
    "loading": "loading",
    "ready": "loaded",
    "draining": "loaded",
    "sleeping": "sleeping",
}
OF_ROUTER: Final = frozenset({"version", "dedup-cache-models"})
"""Lines of a preset file that do not describe a model; `version` stands above every section."""
PRESET_ONLY: Final[dict[str, str]] = {
    "__PRESET_LOAD_ON_STARTUP": "load-on-startup",
    "__PRESET_STOP_TIMEOUT": "stop-timeout",
    "__PRESET_DEDUP_CACHE_MODELS": "dedup-cache-models",
}
"""Variables for keys of a preset file that are not options."""
MODEL_WORDS: Final = ("--model", "-m", "--hf-repo", "-hf", "-hfr", "--models-preset")
"""The options that name a model, or a file of them, when people start llama-server."""
CONTEXT: Final = "ctx-size"
FILES_ONLY: Final = ("--offline", "--no-models-autoload")
"""The words with which a llama-server serves its web UI without loading a model."""


def router_status(state: str) -> str:
    """Return llama.cpp's word for a state of lswap's (server_model_status_to_string)."""
    return _STATUS.get(state, "unloaded")
