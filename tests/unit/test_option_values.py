"""Values of options: what llama-server would misread is refused with the right spelling."""

from __future__ import annotations

import re
import subprocess

import pytest

from llamaswap_py.config.argv import check_args
from llamaswap_py.config.parse import load_config
from llamaswap_py.llamacpp.features import parse_options
from llamaswap_py.llamacpp.option_values import choices, fault_of, number_kind
from llamaswap_py.llamacpp.options import Option

HELP = """\
-c,    --ctx-size N                     size of the prompt context (default: 0, 0 = loaded)
-t,    --threads-batch N                number of threads (default: same as --threads)
-ngl,  --n-gpu-layers N                 an exact number, 'auto', or 'all' (default: auto)
-s,    --seed SEED                      RNG seed (default: -1, use random seed for -1)
--temp N                                temperature (default: 0.80)
--rope-freq-base N                      RoPE base frequency (default: loaded from model)
-ts,   --tensor-split N0,N1,N2,...      fraction of the model to offload to each GPU
--poll <0...100>                        use polling level to wait for work (default: 50)
--cpu-strict <0|1>                      use strict CPU placement (default: 0)
-fa,   --flash-attn [on|off|auto]       set Flash Attention use (default: 'auto')
--pooling {none,mean,cls,last,rank}     pooling type for embeddings
-ctk,  --cache-type-k TYPE              KV cache data type for K
                                        allowed values: f32, f16, q8_0
                                        (default: f16)
--control-vector-layer-range START END
                                        layer range to apply the control vector(s) to
-C,    --cpu-mask M                     CPU affinity mask: arbitrarily long hex (default: "")
-to, --timeout N                        server read/write timeout in seconds (default: 3600)
--sse-ping-interval N                   interval in seconds (-1 = disabled, default: 30)
--alias STRING                          set model name aliases
"""
OPTIONS: dict[str, Option] = dict(parse_options(HELP))


def problems(args: str) -> list[str]:
    text = f"models: {{a: {{model: x, args: {{{args}}}}}}}"
    config = load_config(text, path=None, base_dir="/", env={}, home="/")
    return [str(each) for each in check_args(config.models["a"], config, OPTIONS)]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("threads: 8k", "llama-server would read 8 - write threads: 8192"),
        ("ctx-size: 8kB", "llama-server would read 8 - write ctx-size: 8192"),
        ("ctx-size: -5", "-5 is below 0 - write ctx-size: 0 or more, or take it out"),
        ("timeout: 5m", "'5m' is not a number of seconds - write timeout: 300"),
        ("timeout: 2 h", "write timeout: 7200"),
        ("sse-ping-interval: 30s", "write sse-ping-interval: 30"),
        ("ctx-size: 16_384", "llama-server would read 16 - write ctx-size: 16384"),
        ('ctx-size: "16,384"', "llama-server would read 16 - write ctx-size: 16384"),
        ("ctx-size: '16 384'", "write ctx-size: 16384"),
        ("ctx-size: 0x2000", "llama-server would read 0 - write ctx-size: 8192"),
        ("ctx-size: 1e5", "write ctx-size: 100000"),
        ("ctx-size: '1e5'", "llama-server would read 1 - write ctx-size: 100000"),
        ('ctx-size: " 8"', "write ctx-size: 8"),
        ("ctx-size: 8192 tokens", "write a whole number in digits"),
        ("ctx-size: 8192.5", "write a whole number in digits"),
        ("ctx-size: big", "'big' is not a whole number - write a whole number in digits"),
        ("ctx-size: 3000000000", "more than llama-server counts"),
        ("threads-batch: 8x", "write a number in digits"),
        ("n-gpu-layers: some", "'some' is not a number"),
        ("n-gpu-layers: 99 layers", "write a number in digits"),
        ("temp: '0,7'", "'0,7' is not a number"),
        ("temp: 0x1", "write temperature: 1"),
        ("rope-freq-base: 1M", "write rope-freq-base: 1048576"),
        ("poll: 50%", "'50%' is not a whole number"),
        ("cpu-strict: 2", "'2' is none of 0, 1"),
        ("flash-attn: yes", "none of on, off, auto - write flash-attn: on or off or auto"),
        ("pooling: MEAN", "write pooling: mean"),
        ("cache-type-k: Q8_0", "'Q8_0' is none of f32, f16, q8_0 - write cache-type-k: q8_0"),
        ("tensor-split: 3;1", "write numbers with commas between them"),
        ("control-vector-layer-range: 3 x", "'x' is not a whole number"),
    ],
)
def test_values_that_would_be_misread(args: str, says: str) -> None:
    (message,) = problems(args)
    assert says in message


@pytest.mark.parametrize(
    "args",
    [
        "ctx-size: 8192",
        "ctx-size: 0",
        "ctx-size: '8192'",
        "threads-batch: 8",
        "n-gpu-layers: 99",
        "n-gpu-layers: all",
        "n-gpu-layers: auto",
        "seed: 4294967295",
        "temp: 0.7",
        "temp: 1",
        "temp: 1e-5",
        "rope-freq-base: 1e6",
        "tensor-split: '3,1'",
        "tensor-split: 3/1",
        "tensor-split: 1",
        "poll: 50",
        "cpu-strict: 1",
        "flash-attn: on",
        "flash-attn: true",
        "flash-attn: enabled",
        "flash-attn: 1",
        "pooling: none",
        "cache-type-k: q8_0",
        "control-vector-layer-range: 3 9",
        "cpu-mask: ff",
        "alias: 8k",
        "sse-ping-interval: -1",
    ],
)
def test_values_that_are_what_they_say(args: str) -> None:
    assert not [each for each in problems(args) if "lswap sets" not in each]


def _options(llama_server: str) -> list[Option]:
    done = subprocess.run([llama_server, "--help"], capture_output=True, text=True, check=True)
    return list({id(each): each for each in parse_options(done.stdout).values()}.values())


def test_no_default_of_a_real_engine_is_called_wrong(llama_server: str) -> None:
    """What the help names as an option's own default is a value that it takes."""
    seen = 0
    for option in _options(llama_server):
        said = re.search(r"\(default: '?([\w.-]+)'?[),]", option.description)
        if option.values != 1 or option.removed or said is None:
            continue
        if number_kind(option) is None and not choices(option):
            continue
        if said[1].startswith("--") or said[1] in (
            "same",
            "loaded",
            "read",
            "unset",
            "use",
            "follows",
        ):
            continue
        seen += 1
        assert fault_of(option.name, said[1], option) is None, option
    assert seen > 60


def test_a_real_engine_refuses_or_misreads_what_is_refused_here(llama_server: str) -> None:
    """Every option that the help calls a number is one: `8x` is wrong for all of them."""
    numeric = [each for each in _options(llama_server) if number_kind(each) is not None]
    names = {each.name for each in numeric}
    for name in ("--ctx-size", "--n-gpu-layers", "--temperature", "--seed", "--main-gpu", "--poll"):
        assert name in names
    for name in ("--model", "--cpu-mask", "--cache-type-k", "--host", "--api-key", "--lora"):
        assert name not in names
    for option in numeric:
        assert fault_of("x", "8x", option) is not None, option.name
