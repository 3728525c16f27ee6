"""Corrects names that other programs allow and lswap does not, before it writes the file. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from llamaswap_py.config.preset_names import bad_name
from llamaswap_py.importing.draft import Draft
from llamaswap_py.importing.notes import ImportNote

_LONGEST: Final = 200


def mend_names(draft: Draft) -> None:
    """Give each model and group a name that lswap accepts, and each name to one model only."""
    renamed: dict[str, str] = {}
    for name in list(draft.models):
        if bad_name(name):
            renamed[name] = _free_name(name, {*draft.models, *renamed.values()})
            text = "renamed: lswap's names have no comma, and no blanks around them"
            draft.note(f"models.{renamed[name]}", text, name)
    draft.notes = [_of_renamed(note, renamed) for note in draft.notes]
    draft.failing = {renamed.get(name, name): None for name in draft.failing}
    draft.models = {renamed.get(name, name): preset for name, preset in draft.models.items()}
    groups = draft.settings.get("groups", {})
    for name, group in list(groups.items()):
        group["exclusive"] = [renamed.get(each, each) for each in group["exclusive"]]
        if bad_name(name):
            groups[_free_name(name, set(groups))] = groups.pop(name)
    for alias in draft.settings.get("aliases", {}).values():
        alias["first"] = [renamed.get(each, each) for each in alias["first"]]
    _share_out(draft)


def _of_renamed(note: ImportNote, renamed: dict[str, str]) -> ImportNote:
    """Return a note with a model's new name in its place."""
    for old, new in renamed.items():
        rest = note.place.removeprefix(f"models.{old}")
        if rest != note.place and rest[:1] in ("", "."):
            return replace(note, place=f"models.{new}{rest}")
    return note


def _share_out(draft: Draft) -> None:
    """Remove names of models that another model has, or that lswap does not accept."""
    taken = set(draft.models)
    for model, preset in draft.models.items():
        kept = []
        for alias in preset.get("aliases", []):
            if alias in taken or bad_name(alias):
                text = "left out: another model has this name, or it has a comma"
                draft.note(f"models.{model}.aliases", text, alias)
            else:
                kept.append(alias)
                taken.add(alias)
        if "aliases" in preset:
            preset["aliases"] = kept
            if not kept:
                del preset["aliases"]
        _share_out_settings(model, preset, taken, draft)


def _share_out_settings(model: str, preset: dict[str, Any], taken: set[str], draft: Draft) -> None:
    per_name = preset.get("request", {}).get("per_name", {})
    own = {model, *preset.get("aliases", ())}
    for name in list(per_name):
        if (name in taken and name not in own) or bad_name(name):
            del per_name[name]
            text = "left out: another model has this name, or it has a comma"
            draft.note(f"models.{model}.filters.setParamsByID", text, name)
    taken |= set(per_name)
    if "per_name" in preset.get("request", {}) and not per_name:
        del preset["request"]["per_name"]


def _free_name(name: str, taken: set[str]) -> str:
    """Return the name without characters that lswap refuses, and with a number if it is in use."""
    clean = "".join(each if each.isprintable() and each != "," else "-" for each in name)
    clean = clean.strip()[:_LONGEST] or "model"
    number, free = 1, clean
    while free in taken:
        number += 1
        free = f"{clean}-{number}"
    return free
