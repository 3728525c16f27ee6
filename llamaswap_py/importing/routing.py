"""Who may run beside whom in llama-swap: groups, matrix, selectors, priorities. Pure."""

from __future__ import annotations

from typing import Any, Final

from llamaswap_py.importing.draft import Draft
from llamaswap_py.importing.matrix import allowed_sets, exclusive_groups, loosened

_PRIORITIES: Final = 100


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
        if name in draft.models and isinstance(priority, int) and priority:
            draft.models[name]["priority"] = max(-_PRIORITIES, min(priority, _PRIORITIES))
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
    for name, group in groups.items():
        members = _members(f"groups.{name}", group, draft)
        if group.get("persistent"):
            for member in members:
                draft.models[member]["pin"] = True
        if group.get("swap", True) and len(members) > 1:
            draft.settings.setdefault("groups", {})[str(name)] = {"exclusive": members}
        if group.get("exclusive", True) and len(groups) > 1:
            draft.note(
                f"groups.{name}.exclusive",
                "memory decides whether its models may run beside those of other groups",
            )


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
    for missing in sorted({one for each in allowed for one in each} - set(draft.models)):
        draft.note("matrix.sets", f"there is no model {missing!r}")
    models = list(draft.models)
    for number, group in enumerate(exclusive_groups(models, allowed), 1):
        draft.settings.setdefault("groups", {})[f"apart-{number}"] = {"exclusive": group}
    for three in loosened(allowed, models):
        text = "each two of them may run together, all three may too, if they fit"
        draft.note("matrix.sets", f"{', '.join(sorted(three))}: {text}")
    if matrix.get("evict_costs"):
        draft.note("matrix.evict_costs", "not needed: lswap learns what a reload costs")


def _take_selector(name: str, selector: dict[str, Any], draft: Draft) -> None:
    targets = [str(each) for each in selector.get("targets") or []]
    known = [each for each in targets if _is_known(each, draft)]
    place, strategy = f"selectors.{name}", str(selector.get("strategy", "warm"))
    for missing in [each for each in targets if each not in known]:
        draft.note(place, f"there is no model {missing!r} here")
    if not known:
        return
    if strategy == "spillover":
        draft.note(place, "the first that is ready answers; load is not spread by counts")
    first = known[:1] if strategy == "pin" else known
    draft.settings.setdefault("aliases", {})[name] = {"first": first}


def _is_known(name: str, draft: Draft) -> bool:
    return name in draft.models or any(
        name in one.get("aliases", ()) for one in draft.models.values()
    )
