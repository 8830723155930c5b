"""A synthetic pet shop whose next purchase has a known distribution: the bundled sample dataset.

    python -m recbole_llm.data.sample.generator FOLDER

writes Pet-sample.inter and Pet-sample.item.

A user has a hidden type z = (pet, favourite brand, habit). Given z and the items bought so far, the
next item comes from a mixture of four components, whose weights depend on the habit:

again   the last item once more;
refill  a consumable bought before the last purchase, most likely three or four purchases ago;
follow  what belongs to one of the last two items (aquarium -> filter -> cartridges, puppy food ->
        adult food), mostly of the same brand and of the same flavour or colour;
taste   anything the shop offers the user, by pet, brand and popularity.

A durable product is excluded from `refill`, `follow` and `taste` once it is bought. New arrivals
are offered only after a preview box, and a user buys at most two items after that box: they are the
cold items of the sample.

Given the items bought so far, the length of the sequence, the times and the ratings depend neither
on z nor on the next item, even at the end. So p(next | history) follows from the mixture by Bayes'
rule over z.
"""

import argparse
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pandas as pd

from .words import ARRIVALS, BRANDS, KINDS, PETS, PREVIEW, Kind

HABITS = {  # weights of again, refill, follow, taste
    "stocks up": (0.06, 0.40, 0.34, 0.20),
    "looks around": (0.06, 0.16, 0.43, 0.35),
}
# Weight in `refill` by the number of purchases since the last one of the item; 0.2 beyond.
REFILL = np.array([0.0, 0.0, 0.5, 1.0, 1.0, 0.7, 0.4])
REFILL_BEYOND = 0.2
GROWN = {"adult": "puppy", "dry": "kitten"}  # who buys the first no longer buys the second
START, DAY = 1420070400, 86400  # 2015-01-01 UTC in seconds; seconds in a day
TEXT_COLUMNS = ["title", "categories", "shown", "price", "description"]


def _pick(rng: Random, weights: Sequence[float] | np.ndarray) -> int:
    """Sample an index by weight.

    Only `random()` is called, because its stream is the same in every Python version.
    """
    edges = np.cumsum(weights)
    return min(int(np.searchsorted(edges, rng.random() * edges[-1], side="right")), len(edges) - 1)


def _shuffled(rng: Random, values: Iterable[Any]) -> list[Any]:
    """The values in random order; only `random()` is called."""
    keyed = [(rng.random(), index, value) for index, value in enumerate(values)]
    return [value for _, _, value in sorted(keyed)]


class PetShop:
    """The catalogue and p(next item | items so far).

    Parameters
    ----------
    items : DataFrame, [n_items]
        Id and texts of each item, with the columns of Pet-sample.item; "" where missing.
    facts : DataFrame, [n_items]
        What the distribution depends on: pet, brand, kind, style, consumable, preview, arrival,
        weight (popularity in `taste`), portion (share of its brand's sales of its kind, for
        `follow`).

    Attributes
    ----------
    user_types : DataFrame, [n_types]
        Columns pet, brand, habit and prior of each value of z.
    taste : ndarray of float64, [n_types, n_items]
        Weights of `taste` before items are excluded.
    follow : ndarray of float64, [n_items, n_items]
        Row i: probabilities of what belongs to item i; zero if nothing does.
    closes : ndarray of bool, [n_items, n_items]
        Whether buying item i excludes item j.
    """

    def __init__(self, items: pd.DataFrame, facts: pd.DataFrame):
        self.items, self.facts = items, facts
        self.user_types = pd.DataFrame(_user_types(), columns=["pet", "brand", "habit", "prior"])
        self._habits = np.array([HABITS[habit] for habit in self.user_types.habit])
        self._row = {item: row for row, item in enumerate(items.item_id)}
        self._consumable = facts["consumable"].to_numpy()
        self._preview = facts["preview"].to_numpy()
        self._arrival = facts["arrival"].to_numpy()
        shares = {pet: _brand_shares(pet) for pet in PETS}
        pet, brand = facts["pet"].to_numpy(), facts["brand"].to_numpy()
        share = np.array([shares[p].get(b, 1.0) for p, b in zip(pet, brand)])
        self.taste = self._taste_weights(shares, share)
        self.follow = self._follow_probabilities(share)
        self.closes = self._exclusions()

    def _taste_weights(self, shares: dict[str, dict[str, float]], share: np.ndarray) -> np.ndarray:
        """`taste`: users prefer their pet, their brand and popular items."""
        pet, brand = self.facts["pet"].to_numpy(), self.facts["brand"].to_numpy()
        popularity = self.facts.weight.to_numpy()
        weights = np.empty((len(self.user_types), len(self.items)))
        for z, user in enumerate(self.user_types.itertuples()):
            loyal = np.array([user.brand in shares[p] for p in pet]) & (brand != "")
            liked = np.where(loyal, 0.65 * (brand == user.brand) + 0.35 * share, share)
            near = np.where(pet == user.pet, 0.97, [0.03 * PETS[p][1] for p in pet])
            weights[z] = near * liked * popularity
        return weights

    def _follow_probabilities(self, share: np.ndarray) -> np.ndarray:
        """`follow`: what belongs to an item, mostly of its brand and style."""
        kind, brand = self.facts["kind"].to_numpy(), self.facts["brand"].to_numpy()
        style = self.facts["style"].to_numpy()
        weights = np.array([_follow_weights(name, kind) for name in kind])
        weights *= self.facts.portion.to_numpy() * np.where(
            brand[:, None] == brand, 1.0, 0.25 * share
        )
        weights *= np.where(style[:, None] == style, 3.0, 1.0)
        total = weights.sum(1, keepdims=True)
        return np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)

    def _exclusions(self) -> np.ndarray:
        """`closes`: durable items exclude themselves, and previews each other.

        Food for adult animals excludes that for young ones.
        """
        kind = self.facts["kind"].to_numpy()
        closes = np.diag(~self._consumable) | (self._preview[:, None] & self._preview)
        for grown, young in GROWN.items():
            closes |= (kind == grown)[:, None] & (kind == young)
        return closes

    def next_probabilities(self, history: Sequence[str]) -> np.ndarray:
        """Compute p(next item | items bought so far).

        Parameters
        ----------
        history : sequence of str
            Item ids, oldest first.

        Returns
        -------
        ndarray of float64, [n_items]
            Probabilities in the order of `items`.

        Raises
        ------
        ValueError
            If the history is not one that this shop can have.
        """
        rows = self._rows(history)
        mixed = self._posterior(rows) @ self._mixture(rows)
        return mixed / mixed.sum()

    def posterior(self, history: Sequence[str]) -> np.ndarray:
        """Compute p(z | items bought so far).

        Parameters
        ----------
        history : sequence of str
            Item ids, oldest first.

        Returns
        -------
        ndarray of float64, [n_types]
            Probabilities in the order of `user_types`.

        Raises
        ------
        ValueError
            If the history is not one that this shop can have.
        """
        return self._posterior(self._rows(history))

    def bayes_ndcg(
        self, histories: Iterable[Sequence[str]], topk: Sequence[int] = (10,)
    ) -> dict[int, float]:
        """Compute the expected NDCG@k of the ranking by `next_probabilities`.

        Parameters
        ----------
        histories : iterable of sequence of str
            Item ids of each history, oldest first.
        topk : sequence of int
            Lengths of the lists.

        Returns
        -------
        dict of int to float
            Length -> the mean over the histories.

        Raises
        ------
        ValueError
            If a history is not one that this shop can have.
        """
        best = [np.sort(self.next_probabilities(history))[::-1] for history in histories]
        result = {}
        for k in topk:
            discount = 1 / np.log2(np.arange(2, k + 2))
            top = np.array([probabilities[:k] for probabilities in best])
            result[k] = float(np.mean(top @ discount))
        return result

    def sample(self, n_users: int = 600, seed: int = 2020) -> pd.DataFrame:
        """Sample the purchases of users. About 1.5 % of them are recorded twice, as equal rows.

        Parameters
        ----------
        n_users : int
            Number of users.
        seed : int
            Seed of the purchases.

        Returns
        -------
        DataFrame
            Columns user_id, item_id, rating (1 to 5) and timestamp (Unix seconds, whole, as
            float), sorted by time.
        """
        rng = Random(f"pet events {seed}")
        events: list[tuple[str, str, float, float]] = []
        for user in range(1, n_users + 1):
            events += self._purchases(rng, f"U{user:04d}")
        frame = pd.DataFrame(events, columns=["user_id", "item_id", "rating", "timestamp"])
        return frame.sort_values("timestamp", kind="stable", ignore_index=True)

    def _purchases(self, rng: Random, user: str) -> Iterator[tuple[str, str, float, float]]:
        """Sample the purchases of one user: user, item, rating and time of each."""
        z = _pick(rng, self.user_types.prior.to_numpy())
        length = min(25, 5 + int(-5.6 * math.log(1 - rng.random())))
        rows: list[int] = []
        time = START + 1150 * DAY * rng.random()
        while len(rows) < length:
            item = _pick(rng, self._mixture(rows, slice(z, z + 1))[0])
            rows.append(item)
            # One gap in six is a minute or less: as float32, whose step is 128 s here, such times
            # would be equal.
            if rng.random() < 1 / 6:
                time += 5 + 55 * rng.random()
            else:
                time += (0.05 + 60 * rng.random() ** 2) * DAY
            if self._preview[item]:  # sold from July 2019 on, half a year before the log ends
                time = max(time, START + (1642 + 58 * rng.random()) * DAY)
                length = min(length, len(rows) + 1 + int(2 * rng.random()))
            rating = 1.0 + _pick(rng, (5, 4, 10, 23, 58))
            event = (user, self.items.item_id[item], rating, float(int(time)))
            yield event
            if rng.random() < 0.015:
                yield event

    def _rows(self, history: Sequence[str]) -> list[int]:
        """Item ids -> rows of `items`."""
        unknown = [item for item in history if item not in self._row]
        if unknown:
            raise ValueError(f"expected item ids of this shop, found {unknown[0]!r}")
        return [self._row[item] for item in history]

    def _posterior(self, rows: list[int]) -> np.ndarray:
        """p(z | items), updated by Bayes' rule item by item."""
        belief = self.user_types.prior.to_numpy()
        for t, row in enumerate(rows):
            belief = belief * self._mixture(rows[:t], columns=[row])[:, 0]
            if not belief.any():
                raise ValueError(
                    f"event {t + 1} ({self.items.item_id[row]}) cannot follow the events before "
                    "it: pass a user's whole history, oldest first, without events recorded twice"
                )
            belief = belief / belief.sum()
        return belief

    def _mixture(
        self,
        rows: list[int],
        types: slice = slice(None),
        columns: slice | list[int] = slice(None),
    ) -> np.ndarray:
        """p(next item | z, items so far), float64 [n_types, n_items], or part of it.

        The weight of a component that can offer nothing goes to the others, in proportion.
        """
        excluded = self._excluded(rows)
        components = np.zeros((3, len(self.items)))  # again, refill, follow
        if rows:
            self._fill_components(components, rows, excluded)
        total = components.sum(1)
        components[total > 0] /= total[total > 0, None]
        weights = self._habits[types] * [*(total > 0), True]
        weights /= weights.sum(1, keepdims=True)
        weights[:, 3] /= self.taste[types] @ ~excluded
        by_history = weights[:, :3] @ components[:, columns]
        return by_history + weights[:, 3:] * self.taste[types, columns] * ~excluded[columns]

    def _excluded(self, rows: list[int]) -> np.ndarray:
        """Which items a user with this history is not offered, bool [n_items]."""
        excluded = self.closes[rows].any(0)
        excluded |= self._arrival & (not self._preview[rows].any())
        excluded |= self._preview & (len(rows) < 4)
        return excluded

    def _fill_components(
        self, components: np.ndarray, rows: list[int], excluded: np.ndarray
    ) -> None:
        """Fill in the weights of again, refill and follow, float64 [3, n_items].

        If there is only one purchase, it counts as the last and as the one before.
        """
        again, refill, follow = components
        last, before = rows[-1], rows[-2:][0]
        again[last] = not self._preview[last]
        for age in range(len(rows), 1, -1):  # a later purchase of an item overwrites earlier ones
            refill[rows[-age]] = REFILL[age] if age < len(REFILL) else REFILL_BEYOND
        refill *= self._consumable & ~excluded
        follow[:] = (self.follow[last] + 0.5 * self.follow[before]) * ~excluded
        components[1:, last] = 0  # twice running is `again` (or, rarely, `taste`)


def _user_types() -> list[tuple[str, str, str, float]]:
    """Pet, favourite brand, habit and prior probability of each value of z."""
    types = []
    for pet in PETS:
        for brand, share in _brand_shares(pet).items():
            for habit in HABITS:
                types.append((pet, brand, habit, PETS[pet][1] * share / len(HABITS)))
    return types


def _follow_weights(kind: str, kinds: np.ndarray) -> list[float]:
    """Weight of buying an item of each of `kinds` after one of `kind`."""
    if kind not in KINDS:
        return [0.0] * len(kinds)
    return [KINDS[kind].follows.get(other, 0.0) for other in kinds]


def _brand_shares(pet: str) -> dict[str, float]:
    """Brand -> share of the buyers of a pet whose favourite it is."""
    brands = _brands(pet)
    shares = [1 / (1 + 0.5 * rank) for rank in range(len(brands))]
    total = sum(shares)
    return {brand: share / total for brand, share in zip(brands, shares)}


def _brands(pet: str) -> list[str]:
    """The brands that sell for a pet, most popular first."""
    return [brand for brand, (pets, _) in BRANDS.items() if pet in pets.split()]


def build_world(seed: int = 2020) -> PetShop:
    """Build the shop: which brand sells what, in which styles and sizes, and at which prices.

    Parameters
    ----------
    seed : int
        Seed of the catalogue.

    Returns
    -------
    PetShop
        The shop.
    """
    rng = Random(f"pet shop {seed}")
    stock: list[dict[str, Any]] = []
    for pet, (shelf, _) in PETS.items():
        stock.append(_item(rng, "preview", PREVIEW, pet, "", shelf))
        brands = _brands(pet)
        novel = set(_shuffled(rng, brands)[: round(0.7 * len(brands))])
        for brand in brands:
            stock += _products(rng, pet, brand, brand in novel)
    plain = [row for row in _shuffled(rng, range(len(stock))) if stock[row]["kind"] in KINDS]
    for row in plain[:5]:
        stock[row]["shown"] = ""
    for row in plain[5:12]:
        stock[row]["description"] = ""
    for row in plain[9:14]:  # listed again by another seller: equal text, another id
        item = stock[row]
        copy = {"weight": 0.6 * item["weight"], "portion": 0.6 * item["portion"]}
        stock.append(item | copy)
    table = pd.DataFrame(_shuffled(rng, stock))
    items = table[TEXT_COLUMNS].rename(columns={"shown": "brand"})
    items.insert(0, "item_id", [f"P{number:04d}" for number in range(1, len(items) + 1)])
    return PetShop(items, table.drop(columns=TEXT_COLUMNS))


def _products(rng: Random, pet: str, brand: str, has_arrivals: bool) -> list[dict[str, Any]]:
    """The items that a brand sells for a pet.

    A brand sells most kinds. Its items of kinds with the same styles have the same ones, so that
    its collar and leash share a colour.
    """
    products = []
    order_of: dict[str, list[str]] = {}
    for name, kind in [*KINDS.items(), ("arrival", ARRIVALS[pet])]:
        if kind.pet != pet:
            continue
        is_sold = has_arrivals if name == "arrival" else rng.random() >= 0.12
        if not is_sold:
            continue
        shuffled = _shuffled(rng, kind.styles.split("|"))
        order = order_of.setdefault(kind.styles, shuffled)
        for style in order[: kind.variants]:
            products.append(_item(rng, name, kind, pet, brand, style))
    return products


def _item(rng: Random, name: str, kind: Kind, pet: str, brand: str, style: str) -> dict[str, Any]:
    """One item: its text columns (`shown` is the brand's cell), and its facts."""
    sizes = kind.sizes.split("|")
    size = _pick(rng, [1] * len(sizes))
    low, high = kind.price
    price = (low + (high - low) * size / max(len(sizes) - 1, 1)) * (0.9 + 0.25 * rng.random())
    text = kind.text.format(style.lower())
    if brand and rng.random() < 0.6:
        text = f"{text} {BRANDS[brand][1]}"
    return {
        "title": f"{brand} {kind.noun.format(style)}, {sizes[size]}".strip(),
        "categories": f"Pet Supplies > {PETS[pet][0]} > {kind.path}",
        "shown": brand,
        "price": int(price) + (0.99, 0.49, 0.95)[_pick(rng, (6, 2, 1))],
        "description": text,
        "kind": name,
        "pet": pet,
        "brand": brand,
        "style": style,
        "consumable": kind.consumable,
        "preview": name == "preview",
        "arrival": name == "arrival",
        "weight": kind.weight / kind.variants,
        "portion": 1 / kind.variants,
    }


def write(folder: Path, seed: int = 2020) -> None:
    """Write Pet-sample.inter and Pet-sample.item, RecBole's atomic files.

    Parameters
    ----------
    folder : Path
        Where the files are written.
    seed : int
        Seed of the catalogue and of the purchases.
    """
    shop = build_world(seed)
    items, events = shop.items.copy(), shop.sample(seed=seed)
    items["price"] = items.price.map("{:.2f}".format)
    events["rating"] = events.rating.map("{:.1f}".format)
    events["timestamp"] = events.timestamp.map("{:.0f}".format)
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, frame, types in (
        ("inter", events, "token token float float"),
        ("item", items, "token token_seq token_seq token_seq float token_seq"),
    ):
        header = "\t".join(f"{name}:{type_}" for name, type_ in zip(frame.columns, types.split()))
        lines = [header, *map("\t".join, frame.itertuples(index=False, name=None))]
        (folder / f"Pet-sample.{suffix}").write_text(
            "\n".join(lines) + "\n", encoding="utf-8", newline="\n"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="Write the synthetic pet shop as RecBole atomic files."
    )
    parser.add_argument("folder", type=Path, help="where Pet-sample.inter and Pet-sample.item go")
    parser.add_argument("--seed", type=int, default=2020)
    arguments = parser.parse_args()
    write(arguments.folder, arguments.seed)
