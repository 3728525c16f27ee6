"""The rows of the table in docs/compatibility.md: what works, and the tests that show it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple


class Row(NamedTuple):
    """One line of the table; `tests` are names as pytest takes them, all parameters included."""

    group: str
    text: str
    tests: tuple[str, ...]


_BASICS: Final = "tests/compat/basics.py::test_"
_REAL: Final = "tests/real/test_"
_FOUND: Final = f"{_REAL}bad_models.py::test_found_out_by_llama_server"
_RENAMED: Final = f"{_BASICS}a_renamed_option_is_spelled_as_the_engine_knows_it"
_CLIENTS: Final = f"{_REAL}clients.py::test_"

ROWS: Final[Sequence[Row]] = (
    Row(
        "loading",
        "a model loads and answers; its slots and context are known",
        (f"{_REAL}readiness.py::test_child_mode",),
    ),
    Row(
        "loading",
        "the same by the log alone, on a unix socket and on a TCP port",
        (
            f"{_REAL}readiness.py::test_the_real_engine_without_child_mode",
            f"{_REAL}readiness.py::test_the_real_engine_without_unix_sockets",
        ),
    ),
    Row("loading", "how far a load is", (f"{_BASICS}the_bytes_of_a_load_are_counted",)),
    Row(
        "loading",
        "llama-server's own word for the stage of a load",
        (f"{_BASICS}the_stages_of_a_load_are_told",),
    ),
    Row("loading", "logs as JSON", (f"{_BASICS}json_logs",)),
    Row(
        "loading",
        "two models take turns in the memory for one",
        (f"{_BASICS}two_models_take_turns",),
    ),
    Row(
        "stopping",
        "unload while a stream runs: it finishes, or ends with an error event",
        (
            f"{_REAL}operate.py::test_unload_lets_a_stream_finish",
            f"{_REAL}operate.py::test_force_ends_a_stream_with_an_error_event",
        ),
    ),
    Row(
        "stopping",
        "lswap stops while a model loads and while streams run",
        (
            f"{_REAL}shutdown.py::test_while_a_model_is_loading",
            f"{_REAL}shutdown.py::test_running_streams_finish",
        ),
    ),
    Row(
        "stopping",
        "sleep: the memory comes back, and the model wakes",
        (f"{_REAL}memory.py::test_a_sleeping_model_makes_room_and_wakes",),
    ),
    Row(
        "failures",
        "an option or a value that llama-server refuses",
        (f"{_FOUND}[bad_argument", f"{_FOUND}[bad_value"),
    ),
    Row(
        "failures",
        "a file that is cut short or damaged",
        (f"{_FOUND}[truncated", f"{_FOUND}[damaged"),
    ),
    Row("failures", "an unknown architecture", (f"{_FOUND}[another_architecture",)),
    Row("failures", "memory runs out", (f"{_BASICS}out_of_memory_on_the_host",)),
    Row(
        "failures",
        "a crash in the middle of an answer",
        (f"{_REAL}child_deaths.py::test_a_crash_in_the_middle_of_an_answer",),
    ),
    Row(
        "options",
        "a misspelled option is found before the load",
        (f"{_REAL}bad_models.py::test_known_at_the_start[unknown_argument",),
    ),
    Row("options", "a renamed option, in the spelling of any build", (_RENAMED,)),
    Row(
        "memory",
        "a dry run by llama-fit-params",
        (
            f"{_BASICS}a_dry_run",
            "tests/estimate/test_real.py::test_server_options_and_a_draft_do_not_disturb_the_dry_run",
        ),
    ),
    Row(
        "memory",
        "estimates within 8 % and 4 MiB of the process, rearranged weights once",
        (
            "tests/estimate/test_real.py::test_estimates_meet_reality_and_learn_from_it",
            "tests/estimate/test_real.py::test_a_rearranged_model_is_charged_once",
        ),
    ),
    Row(
        "memory",
        "a context that fits is chosen; after out of memory, a smaller one",
        (
            f"{_REAL}fit.py::test_a_model_whose_context_has_no_place_runs_with_less",
            f"{_REAL}fit.py::test_what_runs_out_of_memory_is_loaded_with_less_once",
        ),
    ),
    Row("memory", "the devices of the engine", (f"{_BASICS}devices_are_listed",)),
    Row(
        "requests",
        "each route has a key, is refused by name, or needs an admin key",
        (
            f"{_BASICS}every_route_of_the_sources_has_a_key",
            f"{_REAL}routes.py::test_the_routes_that_the_binary_answers",
        ),
    ),
    Row(
        "requests",
        "the SDKs of OpenAI and Anthropic",
        (f"{_CLIENTS}openai_sdk", f"{_CLIENTS}anthropic_sdk"),
    ),
    Row("requests", "llama.cpp's own routes", (f"{_CLIENTS}llama_cpp_routes",)),
    Row(
        "requests",
        "Ollama's API",
        (
            f"{_REAL}ollama.py::test_chat_and_generate_whole_and_in_pieces",
            f"{_REAL}ollama.py::test_models_are_listed_and_shown_before_they_are_loaded",
            f"{_REAL}ollama_members.py::test_every_option_is_taken",
        ),
    ),
    Row(
        "requests",
        "a client that leaves frees its slot",
        (f"{_REAL}disconnects.py::test_while_generating",),
    ),
    Row(
        "requests",
        "an answer goes on without its client, and is read again",
        (
            f"{_REAL}streams.py::test_an_answer_goes_on_without_its_client_and_is_read_again",
            f"{_REAL}streams.py::test_what_has_ended_outlives_its_model",
            f"{_REAL}streams.py::test_a_stop_ends_it",
        ),
    ),
    Row(
        "requests",
        "tool calls, whole and in pieces",
        (
            f"{_REAL}tools.py::test_openai_whole_and_in_pieces",
            f"{_REAL}tools.py::test_anthropic",
            f"{_REAL}tools.py::test_ollama",
        ),
    ),
    Row(
        "requests",
        "embeddings and reranking",
        (
            f"{_REAL}tools.py::test_openai_embeddings",
            f"{_REAL}embeddings.py::test_an_input_may_be_as_long_as_the_context",
        ),
    ),
    Row(
        "slots",
        "conversations are kept over an eviction (`keep_kv`)",
        (
            f"{_REAL}keep_kv.py::test_a_conversation_goes_on_where_it_was",
            f"{_REAL}keep_kv.py::test_two_slots_are_kept",
        ),
    ),
    Row(
        "slots",
        "slots are read with the right `slots` only",
        (
            f"{_REAL}child_paths.py::test_slots_show_the_words_of_others_to_no_key_without_the_right",
        ),
    ),
)
