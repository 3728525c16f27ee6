"""llama.cpp's router mode, whose place lswap takes: words for states, keys of presets. Pure.

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
"""Lines of a preset file that say nothing of a model; `version` stands above every section."""
PRESET_ONLY: Final[dict[str, str]] = {
    "__PRESET_LOAD_ON_STARTUP": "load-on-startup",
    "__PRESET_STOP_TIMEOUT": "stop-timeout",
    "__PRESET_DEDUP_CACHE_MODELS": "dedup-cache-models",
}
"""Variables that stand for keys of a preset file which are no options."""
FILES_ONLY: Final = ("--offline", "--no-models-autoload")
"""With these words a llama-server without a model serves its web UI, and loads nothing."""


def router_status(state: str) -> str:
    """Return llama.cpp's word for a state of lswap's (server_model_status_to_string)."""
    return _STATUS.get(state, "unloaded")
