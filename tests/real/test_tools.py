"""Tool calls and embeddings through the SDKs that people use, from real children."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import anthropic
import openai
import pytest
from openai.types.chat import ChatCompletionMessageFunctionToolCall

from tests.real.test_ollama import connect

if TYPE_CHECKING:
    from pathlib import Path

    from tests.real.lab import Lab, Preset

pytestmark = pytest.mark.anyio
HELLO: Any = [{"role": "user", "content": "What is the weather in Oslo?"}]
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
SAID = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
TOOLS: Any = [{"type": "function", "function": {"name": "weather", "parameters": CITY}}]
# In the style of Hermes, which llama.cpp makes a parser for (common/chat*.cpp).
TEMPLATE = """\
{%- if tools %}{{ '<|im_start|>system\\n<tools>' }}{% for tool in tools %}
{{- '\\n' + (tool | tojson) }}{% endfor %}
{{- '\\n</tools>\\nAnswer with\\n<tool_call>\\n{"name": <name>, "arguments": <object>}\
\\n</tool_call><|im_end|>\\n' }}{% endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>\\n' + message.content }}
{{- '\\n</tool_response><|im_end|>\\n' }}
{%- elif message.tool_calls %}{{ '<|im_start|>assistant' }}{% for call in message.tool_calls %}
{{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- (call.function.arguments | tojson) + '}\\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\\n' }}
{%- else %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""


def _caller(lab: Lab) -> Preset:
    """Return a preset that answers everything with a tool call."""
    template: Path = lab.folder / "tools.jinja"
    template.write_text(TEMPLATE)
    path = lab.write_model("caller", SAID)
    args = {"jinja": True, "chat-template-file": str(template), "ctx-size": 8192}
    return {"model": str(path), "memory": {"host": "100MiB"}, "args": args}


async def test_openai_whole_and_in_pieces(lab: Lab) -> None:
    async with (
        lab.lswap({"caller": _caller(lab)}) as lswap,
        openai.AsyncOpenAI(base_url=f"{lswap.url}/v1", api_key="none") as client,
    ):
        answer = await client.chat.completions.create(model="caller", messages=HELLO, tools=TOOLS)
        assert answer.choices[0].finish_reason == "tool_calls"
        call = (answer.choices[0].message.tool_calls or [])[0]
        assert isinstance(call, ChatCompletionMessageFunctionToolCall)
        assert call.function.name == "weather"
        assert json.loads(call.function.arguments) == {"city": "Oslo"}
        stream = await client.chat.completions.create(
            model="caller", messages=HELLO, tools=TOOLS, stream=True
        )
        name = arguments = ""
        async for chunk in stream:
            for part in chunk.choices[0].delta.tool_calls or () if chunk.choices else ():
                assert part.function is not None
                name += part.function.name or ""
                arguments += part.function.arguments or ""
        assert (name, json.loads(arguments)) == ("weather", {"city": "Oslo"})
        # What the tool said goes back, and the conversation goes on.
        told: Any = [
            *HELLO,
            answer.choices[0].message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": call.id, "content": "rain"},
        ]
        again = await client.chat.completions.create(model="caller", messages=told, tools=TOOLS)
        assert again.usage is not None
        assert answer.usage is not None
        assert again.usage.prompt_tokens > answer.usage.prompt_tokens


async def test_anthropic(lab: Lab) -> None:
    async with (
        lab.lswap({"caller": _caller(lab)}) as lswap,
        anthropic.AsyncAnthropic(base_url=lswap.url, api_key="none") as client,
    ):
        answer = await client.messages.create(
            model="caller",
            max_tokens=64,
            messages=HELLO,
            tools=[{"name": "weather", "input_schema": CITY}],  # type: ignore[typeddict-item]
        )
        assert answer.stop_reason == "tool_use"
        (use,) = [block for block in answer.content if block.type == "tool_use"]
        assert (use.name, use.input) == ("weather", {"city": "Oslo"})


async def test_ollama(lab: Lab) -> None:
    async with lab.lswap({"caller": _caller(lab)}) as lswap, connect(lswap) as client:
        answer = await client.chat("caller", messages=HELLO, tools=TOOLS)
        (call,) = answer.message.tool_calls or ()
        assert call.function.name == "weather"
        assert call.function.arguments == {"city": "Oslo"}
        pieces = await client.chat("caller", messages=HELLO, tools=TOOLS, stream=True)
        calls = [call async for one in pieces for call in one.message.tool_calls or ()]
        assert [one.function.arguments for one in calls] == [{"city": "Oslo"}]


async def test_openai_embeddings(lab: Lab) -> None:
    preset = lab.preset("alpha", args={"embeddings": True, "pooling": "mean"})
    async with (
        lab.lswap({"alpha": preset}) as lswap,
        openai.AsyncOpenAI(base_url=f"{lswap.url}/v1", api_key="none") as client,
    ):
        found = await client.embeddings.create(
            model="alpha", input=["alpha says", "hello"], encoding_format="float"
        )
        assert [len(one.embedding) for one in found.data] == [64, 64]
        packed = await client.embeddings.create(model="alpha", input="alpha says")
        assert packed.data[0].embedding == pytest.approx(found.data[0].embedding, abs=1e-6)
