"""Every dataset that can be prepared, by name."""

import difflib
from functools import lru_cache

from ....errors import UserError
from ..recipe import Recipe
from . import amazon2018, amazon2023, m2, mind, movielens, yelp


@lru_cache
def recipes() -> dict[str, Recipe]:
    """Name -> recipe, source by source."""
    return {
        recipe.name: recipe
        for module in (amazon2018, amazon2023, yelp, m2, mind, movielens)
        for recipe in module.recipes()
    }


def find(name: str) -> Recipe:
    """A recipe by its name, or by an Amazon category's that one release alone has. Raises UserError with the nearest names for any other."""
    known = recipes()
    lower = {key.lower(): key for key in known}
    short = {category: short for short, category in amazon2018.SHORT.items()}
    releases = [short.get(name, ""), f"{name}-18", f"{name}-23"]
    meant = [
        found
        for one in ([name] if name.lower() in lower else releases)
        if (found := lower.get(one.lower()))
    ]
    if len(meant) == 1:
        return known[meant[0]]
    near = meant or [lower[one] for one in difflib.get_close_matches(name.lower(), lower, n=3)]
    hint = f", such as {' or '.join(near)}" if near else ""
    raise UserError(
        f"prepare: expected one of the {len(known)} datasets that --list names{hint}; found {name!r}"
    )


def listed() -> list[str]:
    """A line for each dataset, below its source."""
    lines, source = [], None
    for recipe in recipes().values():
        if recipe.source is not source:
            source = recipe.source
            lines += [
                "",
                f"{source.name}  <{source.page}>"
                + ("" if recipe.files[0].urls else "  (files by hand: --raw=FOLDER)"),
            ]
        filters = "; ".join(recipe.filters)
        lines.append(f"  {recipe.name:<24} {recipe.title}" + (f" – {filters}" if filters else ""))
    return lines[1:]
