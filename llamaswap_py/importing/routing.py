"""Who may run beside whom in llama-swap: groups, matrix, selectors, priorities. Pure."""

from __future__ import annotations

from typing import Any, Final

from llamaswap_py.importing.draft import Draft
from llamaswap_py.importing.matrix import allowed_sets, exclusive_groups, loosened

_PRIORITIES: Final = 100
_WORDS: Final = "no counterpart in lswap"
_DEFAULT: Final = "default"
"""What the group of those models is called that are in none."""
_SELECTOR: Final = ("strategy", "targets")


def take_routing(root: dict[str, Any], draft: Draft) -> None:
    """Carry over `groups`, `matrix`, `routing` and `selectors`."""
    routing = _table(root.get("routing"))
    router = _table(routing.get("router"))
    settings = _table(router.get("settings"))
    groups = _table(settings.get("groups") or root.get("groups"))
    matrix = _table(settings.get("matrix") or root.get("matrix"))
    if matrix and (router.get("use") == "matrix" or not groups):
        _take_matrix(matrix, draft)
    else:
        _take_groups(groups, draft)
    scheduler = _table(_table(_table(routing.get("scheduler")).get("settings")).get("fifo"))
    for name, priority in _table(scheduler.get("priority")).items():
        model = draft.model_named(str(name))
        if model is not None and isinstance(priority, int) and priority:
            draft.models[model]["priority"] = max(-_PRIORITIES, min(priority, _PRIORITIES))
    for name, selector in _table(root.get("selectors")).items():
        _take_selector(str(name), _table(selector), draft)


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _take_groups(groups: dict[str, Any], draft: Draft) -> None:
    if not groups:
        if len(draft.models) > 1:
            draft.note(
                "groups",
                "llama-swap ran one model at a time; lswap loads as many as fit the memory"
                " (`policy: {max_loaded: 1}` keeps to one)",
            )
        return
    grouped: set[str] = set()
    for name, group in groups.items():
        grouped |= _take_group(str(name), _table(group), draft)
    alone = [name for name in draft.models if name not in grouped]
    exclusive = [bool(_table(group).get("exclusive", True)) for group in groups.values()]
    exclusive += [True] if alone else []
    if len(exclusive) > 1 and any(exclusive):
        draft.note(
            "groups",
            "a model of an exclusive group unloaded those of other groups; here memory decides who"
            " runs beside whom (two that must not: put them into one `exclusive` group)",
        )
    if len(alone) > 1:
        _exclude(_DEFAULT, alone, draft)
        draft.note(
            "groups",
            f"of the {len(alone)} models in no group llama-swap ran one at a time, which is kept:"
            f" remove the group `{_DEFAULT}` to load as many as fit",
        )


def _take_group(name: str, group: dict[str, Any], draft: Draft) -> set[str]:
    """Carry over one group, and return its members."""
    place = f"groups.{name}"
    members = _members(place, group, draft)
    turns = bool(group.get("swap", True)) and len(members) > 1
    if turns:
        _exclude(name, members, draft, persistent=bool(group.get("persistent")))
    elif group.get("persistent"):
        for member in members:
            draft.models[member]["pin"] = True
            if draft.models[member].get("ttl", "never") != "never":
                draft.note(f"models.{member}.ttl", "does nothing: the model is pinned (`pin`)")
    for key in group.keys() - {"swap", "exclusive", "persistent", "members"}:
        draft.note(f"{place}.{key}", _WORDS)
    return set(members)


def _exclude(name: str, members: list[str], draft: Draft, *, persistent: bool = False) -> None:
    group: dict[str, Any] = {"exclusive": members}
    if persistent:
        group["persistent"] = True
    groups = draft.settings.setdefault("groups", {})
    while name in groups:
        name += "-"
    groups[name] = group


def _members(place: str, group: dict[str, Any], draft: Draft) -> list[str]:
    members = list(dict.fromkeys(str(each) for each in group.get("members") or []))
    for missing in [each for each in members if each not in draft.models]:
        draft.note(place, f"there is no model {missing!r}")
        members.remove(missing)
    return members


def _take_matrix(matrix: dict[str, Any], draft: Draft) -> None:
    names = {str(short): str(model) for short, model in _table(matrix.get("vars")).items()}
    sets = {str(name): str(text) for name, text in _table(matrix.get("sets")).items()}
    try:
        allowed = allowed_sets(sets, names)
    except ValueError as error:
        draft.note("matrix.sets", f"cannot be read: {error}")
        return
    if missing := sorted({one for each in allowed for one in each} - set(draft.models)):
        draft.note("matrix.sets", f"there is no model {', '.join(map(repr, missing))}")
    models = list(draft.models)
    for number, group in enumerate(exclusive_groups(models, allowed), 1):
        draft.settings.setdefault("groups", {})[f"apart-{number}"] = {"exclusive": group}
    if threes := loosened(allowed, models):
        more = f" (and {len(threes) - 1} other sets)" if len(threes) > 1 else ""
        text = "each two of them may run together, all three may too, if they fit"
        draft.note("matrix.sets", f"{', '.join(sorted(threes[0]))}{more}: {text}")
    if matrix.get("evict_costs"):
        draft.note("matrix.evict_costs", "not needed: lswap learns what a reload costs")


def _take_selector(name: str, selector: dict[str, Any], draft: Draft) -> None:
    targets = [str(each) for each in selector.get("targets") or []]
    known = [each for each in targets if draft.model_named(each) is not None]
    place, strategy = f"selectors.{name}", str(selector.get("strategy", "warm"))
    for missing in [each for each in targets if each not in known]:
        draft.note(place, f"there is no model {missing!r} here")
    for key in selector.keys() - {*_SELECTOR}:
        draft.note(place, f"its {key} is left out: an alias can only name its presets")
    if not known:
        return
    if strategy == "spillover":
        draft.note(place, "the first that is ready answers; load is not spread by counts")
    first = known[:1] if strategy == "pin" else known
    draft.settings.setdefault("aliases", {})[name] = {"first": first}
