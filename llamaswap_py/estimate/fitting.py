"""The ways to run a model whose file leaves things open, the best first. Pure.

What the file says stands. What it leaves open is chosen here: the context, the experts and layers
on devices, and whether there is a prompt cache. docs/memory.md tells users the order.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Final, Literal

from llamaswap_py.estimate.formula import layer_devices
from llamaswap_py.estimate.layer_sizes import layers_with_experts
from llamaswap_py.gguf.header import Header
from llamaswap_py.llamacpp.memory_settings import (
    CACHE_RAM,
    EXPERTS,
    OF_BATCH,
    OF_CONTEXT,
    OF_EXPERTS,
    OF_LAYERS,
    OF_TENSORS,
    SLOTS,
    SPLIT,
    Settings,
    on_host_alone,
    option_words,
    with_batch,
    with_context,
    with_experts_on_host,
    with_layers_on_card,
)
from llamaswap_py.units import HOST

LEAST: Final = 8192
"""The shortest context that is chosen before layers move to the host, unless the file says one."""
LAST_RESORT: Final = 4096
"""The shortest context of all: what remains if nothing fits with LEAST."""
COMFORTABLE: Final = 16384
"""Down to this the context is cut before experts or layers leave the devices."""
USUAL: Final = tuple(
    sorted(thousands * 1024 for power in range(9) for thousands in (4 << power, 6 << power))
)
"""Contexts in tokens that people know, the shortest first."""


@dataclass(frozen=True, slots=True)
class FitWish:
    """What the file wishes of a fit; contexts in tokens that one request can get."""

    least: int = LEAST
    want: int = 32768
    favor: Literal["speed", "context"] = "speed"


@dataclass(frozen=True, slots=True)
class FitStep:
    """One way to run a model, as words after those of the file.

    `rank` is its place in the order; steps of one rank are equally good on every placement.
    `context` are the tokens one request can get, `trained` those the model was trained for.
    `layers` counts the output as one, as llama.cpp does.
    """

    rank: int
    words: tuple[str, ...]
    context: int
    trained: int
    slots: int
    layers: int
    layers_on_devices: int
    experts_on_host: int
    """Layers whose experts stay in main memory."""
    moved: bool = False
    """Whether it differs from the step before only in the layers or experts on devices."""

    def lowers(self, other: FitStep) -> bool:
        """Return whether it differs from another step only in less context or prompt cache.

        Its context is not below COMFORTABLE.
        """
        return (
            self.rank > other.rank
            and self.context >= COMFORTABLE
            and self.slots == other.slots
            and self.layers_on_devices == other.layers_on_devices
            and self.experts_on_host == other.experts_on_host
        )

    def text(self, gpus: Sequence[str]) -> str:
        """Return `16,384 of 131,072 context, 24 of 33 layers on Vulkan0` for people.

        It says only what its words choose; "" if that is nothing.
        """
        said: list[str] = []
        if self._chooses(*OF_CONTEXT):
            of = f" of {self.trained:,}" if self.context < self.trained else ""
            said.append(f"{self.context:,}{of} context")
        if gpus and self._chooses(*OF_LAYERS, SPLIT):
            where = self._where(gpus)
            if self.layers_on_devices >= self.layers:
                said.append(f"all {self.layers} layers on {where}")
            elif self.layers_on_devices:
                said.append(f"{self.layers_on_devices} of {self.layers} layers on {where}")
            else:
                said.append("all layers on the host")
        if self._chooses(EXPERTS):
            layers = "1 layer" if self.experts_on_host == 1 else f"{self.experts_on_host} layers"
            said.append(f"the experts of {layers} on the host")
        if self._chooses(SLOTS):
            said.append(f"{self.slots} slot{'s' * (self.slots > 1)}")
        if self._chooses(CACHE_RAM):
            said.append("no prompt cache")
        return ", ".join(said)

    def _chooses(self, *options: str) -> bool:
        return any(f"--{option}" in self.words for option in options)

    def _where(self, gpus: Sequence[str]) -> str:
        """Return the devices, with the layers of each if words divide them."""
        if (option := f"--{SPLIT}") not in self.words:
            return " and ".join(gpus)
        counts = self.words[self.words.index(option) + 1].split(",")
        shares = [
            f"{gpu} ({count})" for gpu, count in zip(gpus, counts, strict=False) if count != "0"
        ]
        return " and ".join(shares)


@dataclass(frozen=True, slots=True)
class _Cut:
    """A context: tokens of one request, and the slots that share or divide the whole."""

    context: int
    slots: int


@dataclass(frozen=True, slots=True)
class _Place:
    """Where layers are: how many on devices, and below which layer experts are on the host."""

    layers: int
    experts_below: int = 0


@dataclass(frozen=True, slots=True)
class _Cuts:
    """Contexts from the longest to the shortest, in the groups between which other things move."""

    long: tuple[_Cut, ...]
    short: tuple[_Cut, ...]
    last: tuple[_Cut, ...]

    @property
    def shortest(self) -> _Cut:
        return (self.long + self.short)[-1]


def fit_steps(
    header: Header,
    settings: Settings,
    said: Collection[str],
    gpus: Sequence[str],
    wish: FitWish,
    *,
    known: Collection[str] | None = None,
) -> tuple[FitStep, ...]:
    """Return every way to run a model of this header, in the order in which they are tried.

    `settings` are those of the file; `said` names the options that the file gives (`cache-ram` also
    where another key of the file sets it), which stand. `known` are the options of the engine with
    dashes; None means all. Without `gpus` only the context and the prompt cache are open.
    """
    form = _Form(header, settings, frozenset(said), tuple(gpus), known)
    cuts = form.cuts(wish)
    order = _by_context(form, cuts) if wish.favor == "context" else _by_speed(form, cuts)
    steps: list[FitStep] = []
    for cut, place, moved in order:
        for keeps_cache in form.caches():
            step = form.step(len(steps), cut, place, keeps_cache=keeps_cache)
            steps.append(replace(step, moved=moved))
    return tuple(steps)


_Ordered = Iterator[tuple[_Cut, _Place, bool]]


def _by_speed(form: _Form, cuts: _Cuts) -> _Ordered:
    """Shorten the context before layers leave the devices; experts leave after the first part."""
    whole, lean = form.whole, form.without_experts
    yield from ((cut, whole, False) for cut in cuts.long)
    yield from ((cuts.long[-1], place, True) for place in form.expert_places())
    yield from ((cut, lean, False) for cut in cuts.short)
    yield from ((cuts.shortest, place, True) for place in form.layer_places())
    yield from ((cut, place, False) for place in form.host_places() for cut in cuts.long)
    yield from ((cut, place, False) for place in form.host_places() for cut in cuts.short)
    yield from _last(form, cuts)


def _by_context(form: _Form, cuts: _Cuts) -> _Ordered:
    """Move experts and layers to the host before the context is cut."""
    for cut in chain(cuts.long, cuts.short):
        yield cut, form.whole, False
        yield from ((cut, place, True) for place in form.expert_places())
        yield from ((cut, place, True) for place in form.layer_places())
        yield from ((cut, place, False) for place in form.host_places())
    yield from _last(form, cuts)


def _last(form: _Form, cuts: _Cuts) -> _Ordered:
    for cut in cuts.last:
        yield cut, form.without_experts, False
        yield from ((cut, place, True) for place in form.layer_places())
        yield from ((cut, place, False) for place in form.host_places())


class _Form:
    """What one model leaves open on one placement, and its steps as words."""

    def __init__(
        self,
        header: Header,
        settings: Settings,
        said: frozenset[str],
        gpus: tuple[str, ...],
        known: Collection[str] | None,
    ) -> None:
        self._settings = settings
        self._known = known
        self._said = said
        self._gpus = gpus
        self._trained = header.integer("context_length", 4096)
        self._experts = layers_with_experts(header)
        self._layers = header.integer("block_count") + 1
        placed = layer_devices(header, settings, gpus)
        self._on_devices = sum(device != HOST for device in placed)

    # What is open

    def _has(self, name: str) -> bool:
        """Return whether the engine has an option."""
        return self._known is None or f"--{name}" in self._known

    @property
    def _context_is_open(self) -> bool:
        return not OF_CONTEXT & self._said

    @property
    def _layers_are_open(self) -> bool:
        return bool(self._gpus) and not OF_LAYERS & self._said

    @property
    def _experts_are_open(self) -> bool:
        given = (OF_EXPERTS | OF_TENSORS) & self._said
        there = bool(self._gpus and self._experts and self._on_devices)
        return there and not given and self._has(EXPERTS)

    @property
    def _batch_is_open(self) -> bool:
        """Whether lswap, not the file, has made the batch as long as an input may be."""
        return self._settings.embedding and self._context_is_open and not OF_BATCH & self._said

    def caches(self) -> tuple[bool, ...]:
        """Return whether the prompt cache is kept: always, or first kept and then left out."""
        given = CACHE_RAM in self._said or not self._has(CACHE_RAM)
        if given or not self._settings.prompt_cache:
            return (True,)
        return (True, False)

    def cuts(self, wish: FitWish) -> _Cuts:
        """Return the contexts to try."""
        settings = self._settings
        if not self._context_is_open:
            whole = settings.context or self._trained
            return _Cuts((_Cut(self._of_one(whole), settings.slots),), (), ())
        longest = self._trained if settings.embedding else min(wish.want, self._trained)
        floor = min(COMFORTABLE, longest)
        least = min(wish.least, longest)
        known = [longest, *(size for size in reversed(USUAL) if least < size < longest), least]
        tried = list(dict.fromkeys(known))
        short = [_Cut(size, settings.slots) for size in tried if size < floor]
        short += [_Cut(least, slots) for slots in self._fewer_slots()]
        last = LAST_RESORT if wish.least == LEAST and least > LAST_RESORT else 0
        fewest = (short or [_Cut(least, settings.slots)])[-1].slots
        return _Cuts(
            tuple(_Cut(size, settings.slots) for size in tried if size >= floor),
            tuple(short),
            (_Cut(last, fewest),) if last else (),
        )

    def _fewer_slots(self) -> list[int]:
        """Return smaller numbers of slots, where each has a context of its own."""
        slots, found = self._settings.slots, []
        while not self._settings.unified and slots > 1:
            slots //= 2
            found.append(slots)
        return found

    def _of_one(self, whole: int) -> int:
        """Return what one request can get of a context."""
        return whole if self._settings.unified else max(whole // self._settings.slots, 1)

    # Where layers can be

    @property
    def whole(self) -> _Place:
        """Everything on devices, as far as the file leaves it open."""
        return _Place(self._on_devices)

    @property
    def without_experts(self) -> _Place:
        """The same with all experts in main memory."""
        below = max(self._experts) + 1 if self._experts_are_open else 0
        return _Place(self._on_devices, below)

    def expert_places(self) -> Iterator[_Place]:
        """Yield more and more layers whose experts are in main memory."""
        if self._experts_are_open:
            yield from (_Place(self._on_devices, layer + 1) for layer in self._experts)

    def layer_places(self) -> Iterator[_Place]:
        """Yield fewer and fewer layers on devices, at least one."""
        if self._layers_are_open:
            lean = self.without_experts
            yield from (replace(lean, layers=count) for count in range(self._on_devices - 1, 0, -1))

    def host_places(self) -> Iterator[_Place]:
        """Yield the place of a model that no device helps to run."""
        if self._layers_are_open:
            yield _Place(0)

    # As words

    def step(self, rank: int, cut: _Cut, place: _Place, *, keeps_cache: bool) -> FitStep:
        """Return a step with the words that lead to it."""
        options: dict[str, str] = {}
        if self._context_is_open:
            each = 1 if self._settings.unified else cut.slots
            options |= with_context(cut.context * each)
        if cut.slots != self._settings.slots:
            options[SLOTS] = str(cut.slots)
        if self._layers_are_open:
            options |= with_layers_on_card(place.layers)
            if not place.layers:
                options |= on_host_alone(self._settings, self._said)
        if place.experts_below and place.layers:
            options |= with_experts_on_host(place.experts_below)
        if not keeps_cache:
            options[CACHE_RAM] = "0"
        if self._batch_is_open and cut.context < self._settings.micro_batch:
            options |= with_batch(cut.context)
        experts = sum(layer < self._experts_below(place) for layer in self._experts)
        return FitStep(
            rank,
            tuple(word for name, value in options.items() for word in option_words(name, value)),
            cut.context,
            self._trained,
            cut.slots,
            self._layers,
            place.layers,
            experts if place.layers else 0,
        )

    def _experts_below(self, place: _Place) -> int:
        return max(place.experts_below, self._settings.cpu_expert_layers)
