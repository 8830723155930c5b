"""A synthetic pet shop whose next purchase has a known distribution: the bundled sample dataset.

    python -m recbole_llm.data.sample.generator FOLDER     writes Pet-sample.inter and Pet-sample.item

A user has a hidden type z = (pet, favourite brand, habit). Given z and the items bought so far, the next item is
drawn from a mixture of four parts, whose weights depend on the habit:
  again   the last item once more;
  refill  a consumable bought before the last event, likeliest when three or four events old;
  follow  what goes with one of the last two items (aquarium -> filter -> cartridges, puppy food -> adult food),
          mostly of the same brand and of the same flavour or colour;
  taste   anything the shop has open to the user, by pet, brand and popularity.
A durable good leaves `refill`, `follow` and `taste` once it is bought. New arrivals open only after a preview box,
and a user has at most two events after that box: they are the cold items of the sample.
Given the items already bought, the length of the sequence, the times and the ratings say nothing about z or about the
next item, the last one included. So p(next | history) follows from the mixture by Bayes' rule over z.
"""

import argparse
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random

import numpy as np
import pandas as pd

from .words import ARRIVALS, BRANDS, KINDS, PETS, PREVIEW, Kind

HABITS = {  # weights of again, refill, follow, taste
    "stocks up": (0.06, 0.40, 0.34, 0.20),
    "looks around": (0.06, 0.16, 0.43, 0.35),
}
REFILL = np.array(
    [0.0, 0.0, 0.5, 1.0, 1.0, 0.7, 0.4]
)  # weight by age in events of the last such purchase; then 0.2
GROWN = {
    "adult": "puppy",
    "dry": "kitten",
}  # once the adult food is bought, the young animal's food is closed
START, DAY = 1420070400, 86400  # 2015-01-01 UTC in seconds; seconds in a day


def _pick(rng: Random, weights: Sequence[float]) -> int:
    """Index drawn by weight. Only `random()` is used: its stream is the same in every Python version."""
    edges = np.cumsum(weights)
    return min(int(np.searchsorted(edges, rng.random() * edges[-1], side="right")), len(edges) - 1)


def _shuffled(rng: Random, values: Iterable) -> list:
    return [
        value for *_, value in sorted((rng.random(), k, value) for k, value in enumerate(values))
    ]


class PetShop:
    """The world: its catalogue and p(next item | items so far). Items and user types are indexed by row.

    items        id and text of each item, in the columns of Pet-sample.item (empty string = missing)
    facts        what the model knows of each item: pet, brand, kind, style, consumable, preview, arrival,
                 weight (popularity in `taste`), portion (share of its brand's sales of the kind in `follow`)
    user_types   pet, brand, habit, prior of each value of z
    taste        [types, items] weights of `taste` before closed items are taken out
    follow       [items, items] row i: probabilities of what goes with item i; zero if nothing does
    closes       [items, items] true where buying item i closes item j
    """

    def __init__(self, items: pd.DataFrame, facts: pd.DataFrame):
        self.items, self.facts = items, facts
        self.user_types = pd.DataFrame(
            [
                (pet, brand, habit, PETS[pet][1] * share / len(HABITS))
                for pet in PETS
                for brand, share in _brand_shares(pet).items()
                for habit in HABITS
            ],
            columns=["pet", "brand", "habit", "prior"],
        )
        self._habits = np.array([HABITS[habit] for habit in self.user_types.habit])
        self._row = {item: row for row, item in enumerate(items.item_id)}
        self._consumable, self._preview, self._arrival = (
            facts[flag].to_numpy() for flag in ("consumable", "preview", "arrival")
        )
        kind, pet, brand, style = (
            facts[name].to_numpy() for name in ("kind", "pet", "brand", "style")
        )
        shares = {p: _brand_shares(p) for p in PETS}
        share = np.array([shares[p].get(b, 1.0) for p, b in zip(pet, brand)])

        self.taste = np.empty((len(self.user_types), len(items)))
        for z, user in enumerate(self.user_types.itertuples()):
            loyal = np.array([user.brand in shares[p] for p in pet]) & (brand != "")
            liked = np.where(loyal, 0.65 * (brand == user.brand) + 0.35 * share, share)
            near = np.where(pet == user.pet, 0.97, [0.03 * PETS[p][1] for p in pet])
            self.taste[z] = near * liked * facts.weight.to_numpy()

        wanted = np.array(
            [[KINDS[a].follows.get(b, 0.0) if a in KINDS else 0.0 for b in kind] for a in kind]
        )
        wanted *= facts.portion.to_numpy() * np.where(brand[:, None] == brand, 1.0, 0.25 * share)
        wanted *= np.where(style[:, None] == style, 3.0, 1.0)
        total = wanted.sum(1, keepdims=True)
        self.follow = np.divide(wanted, total, out=np.zeros_like(wanted), where=total > 0)

        self.closes = np.diag(~self._consumable) | (self._preview[:, None] & self._preview)
        for grown, young in GROWN.items():
            self.closes |= (kind == grown)[:, None] & (kind == young)

    def next_probabilities(self, history: Sequence[str]) -> np.ndarray:
        """p(next item | item ids bought so far, oldest first): float64 [n_items] in the order of `items`."""
        rows = self._rows(history)
        mixed = self._posterior(rows) @ self._mixture(rows)
        return mixed / mixed.sum()

    def posterior(self, history: Sequence[str]) -> np.ndarray:
        """p(z | item ids bought so far): float64 [n_types] in the order of `user_types`."""
        return self._posterior(self._rows(history))

    def bayes_ndcg(self, histories: Iterable[Sequence[str]], k: int = 10) -> float:
        """NDCG@k that the ranking by `next_probabilities` attains in expectation, mean over histories."""
        discount = 1 / np.log2(np.arange(2, k + 2))
        top = [np.sort(self.next_probabilities(history))[::-1][:k] for history in histories]
        return float(np.mean(np.array(top) @ discount))

    def sample(self, n_users: int = 600, seed: int = 2020) -> pd.DataFrame:
        """Events of all users by time: user_id, item_id, rating (1-5), timestamp (Unix seconds, whole, as float).

        About 1.5 % of the events are recorded twice, as equal rows.
        """
        rng = Random(f"pet events {seed}")
        prior, ids = self.user_types.prior.to_numpy(), self.items.item_id.tolist()
        events = []
        for user in range(1, n_users + 1):
            z = _pick(rng, prior)
            length = min(25, 5 + int(-5.6 * math.log(1 - rng.random())))
            rows: list[int] = []
            clock = START + 1150 * DAY * rng.random()
            while len(rows) < length:
                rows.append(_pick(rng, self._mixture(rows, slice(z, z + 1))[0]))
                # One gap in six is a minute or less: in float32, whose step is 128 s here, such events would tie.
                clock += (
                    5 + 55 * rng.random()
                    if rng.random() < 1 / 6
                    else (0.05 + 60 * rng.random() ** 2) * DAY
                )
                if self._preview[
                    rows[-1]
                ]:  # sold from July 2019 on, half a year before the log ends
                    clock = max(clock, START + (1642 + 58 * rng.random()) * DAY)
                    length = min(length, len(rows) + 1 + int(2 * rng.random()))
                rating = 1.0 + _pick(rng, (5, 4, 10, 23, 58))
                event = (f"U{user:04d}", ids[rows[-1]], rating, float(int(clock)))
                events += [event] * (2 if rng.random() < 0.015 else 1)
        frame = pd.DataFrame(events, columns=["user_id", "item_id", "rating", "timestamp"])
        return frame.sort_values("timestamp", kind="stable", ignore_index=True)

    def _rows(self, history: Sequence[str]) -> list[int]:
        unknown = [item for item in history if item not in self._row]
        if unknown:
            raise ValueError(f"expected item ids of this shop, found {unknown[0]!r}")
        return [self._row[item] for item in history]

    def _posterior(self, rows: list[int]) -> np.ndarray:
        belief = self.user_types.prior.to_numpy()
        for t, row in enumerate(rows):
            belief = belief * self._mixture(rows[:t], columns=[row])[:, 0]
            if not belief.any():
                raise ValueError(
                    f"event {t + 1} ({self.items.item_id[row]}) cannot follow the events before it: "
                    "pass a user's whole history, oldest first, without events recorded twice"
                )
            belief = belief / belief.sum()
        return belief

    def _mixture(self, rows: list[int], types=slice(None), columns=slice(None)) -> np.ndarray:
        """p(next item | z, items so far): [types, items], or the selected rows and columns of it.

        A part with nothing to offer hands its weight to the others, in proportion.
        """
        shut = self.closes[rows].any(0)
        shut |= self._arrival & (not self._preview[rows].any())
        shut |= self._preview & (len(rows) < 4)
        parts = np.zeros((3, len(self.items)))  # again, refill, follow
        if rows:
            last = rows[-1]
            parts[0, last] = not self._preview[last]
            for age in range(
                len(rows), 1, -1
            ):  # the latest purchase of an item overwrites earlier ones
                parts[1, rows[-age]] = REFILL[age] if age < len(REFILL) else 0.2
            parts[1] *= self._consumable & ~shut
            parts[2] = (
                self.follow[last] + 0.5 * self.follow[rows[-2:][0]]
            ) * ~shut  # alone, the last counts as both
            parts[1:, last] = 0  # twice running is `again` (or, rarely, `taste`)
        total = parts.sum(1)
        parts[total > 0] /= total[total > 0, None]
        weights = self._habits[types] * [*(total > 0), True]
        weights /= weights.sum(1, keepdims=True)
        weights[:, 3] /= self.taste[types] @ ~shut
        return (
            weights[:, :3] @ parts[:, columns]
            + weights[:, 3:] * self.taste[types, columns] * ~shut[columns]
        )


def _brand_shares(pet: str) -> dict[str, float]:
    """Brands that sell for a pet -> share of its buyers who favour them."""
    shares = [1 / (1 + 0.5 * rank) for rank in range(len(_brands(pet)))]
    return {brand: share / sum(shares) for brand, share in zip(_brands(pet), shares)}


def _brands(pet: str) -> list[str]:
    return [brand for brand, (pets, _) in BRANDS.items() if pet in pets.split()]


def build_world(seed: int = 2020) -> PetShop:
    """Stock the shop: which brand sells what, in which styles, sizes and prices."""
    rng = Random(f"pet shop {seed}")
    stock = []
    for pet, (shelf, _) in PETS.items():
        stock.append(_item(rng, "preview", PREVIEW, pet, "", shelf))
        brands = _brands(pet)
        novel = set(_shuffled(rng, brands)[: round(0.7 * len(brands))])
        for brand in brands:
            styles: dict[
                str, list[str]
            ] = {}  # one order per brand: its collar and leash share a colour
            for name, kind in [*KINDS.items(), ("arrival", ARRIVALS[pet])]:
                if kind.pet != pet or (
                    brand not in novel if name == "arrival" else rng.random() < 0.12
                ):
                    continue
                order = styles.setdefault(kind.styles, _shuffled(rng, kind.styles.split("|")))
                stock += [
                    _item(rng, name, kind, pet, brand, style) for style in order[: kind.variants]
                ]
    plain = [k for k in _shuffled(rng, range(len(stock))) if stock[k]["kind"] in KINDS]
    for k in plain[:5]:
        stock[k]["shown"] = ""
    for k in plain[5:12]:
        stock[k]["description"] = ""
    for k in plain[9:14]:  # another seller's listing: equal text, another id
        stock.append(
            stock[k] | {"weight": 0.6 * stock[k]["weight"], "portion": 0.6 * stock[k]["portion"]}
        )
    table = pd.DataFrame(_shuffled(rng, stock))
    items = table[["title", "categories", "shown", "price", "description"]].rename(
        columns={"shown": "brand"}
    )
    items.insert(0, "item_id", [f"P{k:04d}" for k in range(1, len(items) + 1)])
    return PetShop(
        items, table.drop(columns=["title", "categories", "shown", "price", "description"])
    )


def _item(rng: Random, name: str, kind: Kind, pet: str, brand: str, style: str) -> dict:
    """One item: its text columns (`shown` is the brand's cell) and what the model knows of it."""
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
    """Write Pet-sample.inter and Pet-sample.item: RecBole atomic files (tabs, typed header, empty = missing)."""
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
