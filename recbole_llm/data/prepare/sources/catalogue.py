"""Every dataset that can be prepared, by name."""

import difflib
from functools import lru_cache

from ....errors import UserError
from ..recipe import Recipe
from . import amazon2018, amazon2023, m2, mind, movielens, yelp


@lru_cache
def recipes() -> dict[str, Recipe]:
    """Collect the recipes of all sources.

    Returns
    -------
    dict of str to Recipe
        Name -> recipe, source by source.
    """
    result = {}
    for module in (amazon2018, amazon2023, yelp, m2, mind, movielens):
        for recipe in module.recipes():
            result[recipe.name] = recipe
    return result


def find(name: str) -> Recipe:
    """Find a recipe by its name, whatever its case.

    Parameters
    ----------
    name : str
        Name of a dataset, or of an Amazon category that only one release has.

    Returns
    -------
    Recipe
        The recipe.

    Raises
    ------
    UserError
        With similar names, if there is no such dataset or there are several.
    """
    known = recipes()
    by_lower_case = {key.lower(): key for key in known}
    candidates = [name]
    if name.lower() not in by_lower_case:
        short_of = {category: short for short, category in amazon2018.SHORT.items()}
        candidates = [short_of.get(name, ""), f"{name}-18", f"{name}-23"]
    matches = [
        by_lower_case[candidate.lower()]
        for candidate in candidates
        if candidate.lower() in by_lower_case
    ]
    if len(matches) == 1:
        return known[matches[0]]
    if not matches:
        similar = difflib.get_close_matches(name.lower(), by_lower_case, n=3)
        matches = [by_lower_case[key] for key in similar]
    hint = f", such as {' or '.join(matches)}" if matches else ""
    raise UserError(
        f"prepare: expected one of the {len(known)} datasets that --list names{hint}; "
        f"found {name!r}"
    )


def listed() -> list[str]:
    """Describe the datasets for `prepare --list`.

    Returns
    -------
    list of str
        A line for each source, and below it a line for each of its datasets.
    """
    lines: list[str] = []
    source = None
    for recipe in recipes().values():
        if recipe.source is not source:
            source = recipe.source
            by_hand = "" if recipe.files[0].urls else "  (files by hand: --raw=FOLDER)"
            lines += ["", f"{source.name}  <{source.page}>{by_hand}"]
        filters = "; ".join(recipe.filters)
        lines.append(f"  {recipe.name:<24} {recipe.title}" + (f" – {filters}" if filters else ""))
    return lines[1:]
