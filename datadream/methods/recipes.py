"""The recipe of a method in a profile, and the book's tables of settings."""

from collections.abc import Collection, Mapping
from typing import Any

from ..config import DERIVED, PROFILES, Recipe, as_dict, as_mapping, build_recipe, leaves
from .registry import METHODS


def recipe(
    profile: str = "mini", overrides: Mapping[str, Any] | None = None, **fields: Any
) -> Recipe:
    """Return the Recipe of a profile and a method.

    `fields` are top-level (`dataset="mnist"`), `overrides` dotted (`{"adapt.lr": 1e-3}`). Integers
    are accepted as floats. Raises ConfigError, with the nearest accepted name, on an unknown
    profile, method, key or value.
    """
    named = {**fields, **as_mapping(overrides)}.get("method", Recipe.method)
    known = METHODS.get(named) if isinstance(named, str) else None
    made = build_recipe(profile, known.settings if known else {}, overrides, **fields)
    METHODS.find(made.method)
    return made


def settings_table() -> list[dict[str, Any]]:
    """Return the book's table of settings: per field its name, paper value, mini value and why."""
    paper, mini = as_dict(recipe("paper")), as_dict(recipe("mini"))
    return [
        {"field": name, "paper": paper[name], "mini": mini[name], "why": spec.metadata["why"]}
        for name, _, spec in leaves(Recipe())
    ]


def method_settings_table(names: Collection[str] = ()) -> list[dict[str, Any]]:
    """Return one row per setting that a method changes, for the methods `names` (empty: all).

    Columns: method, field, its value in both profiles, and the profiles' own. Derived profiles are
    left out.
    """
    rows, profiles = [], [profile for profile in PROFILES if profile not in DERIVED]
    for name, row in METHODS.items():
        if row.settings and not name.endswith("+real") and (not names or name in names):
            changed = sorted({field for values in row.settings.values() for field in values})
            values = {profile: as_dict(recipe(profile, method=name)) for profile in profiles}
            own = {profile: as_dict(recipe(profile, method="dset")) for profile in profiles}
            rows += [
                {
                    "method": row.title,
                    "field": field,
                    **{profile: values[profile][field] for profile in profiles},
                    **{f"{profile}, other methods": own[profile][field] for profile in profiles},
                }
                for field in changed
            ]
    return rows
