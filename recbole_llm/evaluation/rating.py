"""Rating prediction: what a user will give an item, from vectors of history and item, beside the item's mean and PMF."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

EPOCHS, PATIENCE, BATCH = 100, 5, 1024


@dataclass(frozen=True)
class Ratings:
    """Events with their ratings; users and items are numbers."""

    user: np.ndarray  # int64 [n]
    item: np.ndarray  # int64 [n]
    value: np.ndarray  # float64 [n]

    @classmethod
    def of_rows(cls, tables, rows: np.ndarray, column: str) -> "Ratings":
        return cls(
            tables.user[rows].astype(np.int64),
            tables.item[rows].astype(np.int64),
            tables.columns[column][rows].astype(np.float64),
        )

    def __len__(self) -> int:
        return len(self.value)


def errors(predicted: np.ndarray, value: np.ndarray) -> dict[str, float]:
    """Root of the mean squared error, and mean absolute error."""
    gap = predicted - value
    return {"rmse": float(np.sqrt(np.mean(gap**2))), "mae": float(np.mean(np.abs(gap)))}


def item_mean(train: Ratings, asked: Ratings) -> np.ndarray:
    """float64 [n]: the mean of the item's training ratings; of an item without one, the mean of all."""
    most = max(train.item.max(), asked.item.max()) + 1
    count, total = (
        np.bincount(train.item, minlength=most),
        np.bincount(train.item, train.value, minlength=most),
    )
    means = np.where(count > 0, total / np.maximum(count, 1), train.value.mean())
    return means[asked.item]


class Factors(nn.Module):
    """Probabilistic matrix factorisation (Salakhutdinov & Mnih, NeurIPS 2007): mean + u_i · v_j, whose priors are a weight decay."""

    def __init__(self, users: int, items: int, mean: float, width: int = 16):
        super().__init__()
        self.user, self.item, self.mean = (
            nn.Embedding(users, width),
            nn.Embedding(items, width),
            mean,
        )
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=0.1)

    def forward(self, pairs: torch.Tensor) -> torch.Tensor:
        return self.mean + (self.user(pairs[:, 0]) * self.item(pairs[:, 1])).sum(dim=1)


class Regression(nn.Module):
    """A dense network over the vectors of history and item, one after the other (ST5-Seq's rating prediction)."""

    def __init__(self, width: int, mean: float, hidden: int = 256):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(0.2), nn.Linear(hidden, 1)
        )
        self.mean = mean

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return self.mean + self.layers(vectors)[:, 0]


def fitted(
    model: nn.Module,
    inputs: dict[str, np.ndarray],
    train: Ratings,
    valid: Ratings,
    *,
    seed: int,
    learning_rate: float,
    decay: float,
) -> np.ndarray:
    """float64 [test cases]: what the model predicts once its validation RMSE has stopped improving.

    inputs : part ("train", "valid", "test") -> what `model` is called with, first dimension cases.
    """
    lowest, highest = train.value.min(), train.value.max()
    data = {part: torch.from_numpy(values) for part, values in inputs.items()}
    target = torch.from_numpy(train.value).float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=decay)
    order = torch.Generator().manual_seed(seed)

    def predict(part: str) -> np.ndarray:
        model.eval()
        with torch.no_grad():
            return model(data[part]).double().clamp(lowest, highest).numpy()

    best, found, since = np.inf, predict("test"), 0
    for _ in range(EPOCHS):
        model.train()
        for rows in torch.randperm(len(train), generator=order).split(BATCH):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(data["train"][rows]), target[rows]).backward()
            optimizer.step()
        rmse, since = errors(predict("valid"), valid.value)["rmse"], since + 1
        if rmse < best:
            best, found, since = rmse, predict("test"), 0
        if since > PATIENCE:
            break
    return found


def pmf(train: Ratings, valid: Ratings, test: Ratings, seed: int) -> np.ndarray:
    """float64 [n]: PMF's predictions for `test`."""
    torch.manual_seed(seed)
    users, items = (
        max(getattr(part, name).max() for part in (train, valid, test)) + 1
        for name in ("user", "item")
    )
    inputs = {
        name: np.stack([part.user, part.item], axis=1)
        for name, part in (("train", train), ("valid", valid), ("test", test))
    }
    return fitted(
        Factors(users, items, train.value.mean()),
        inputs,
        train,
        valid,
        seed=seed,
        learning_rate=0.005,
        decay=0.1,
    )


def by_vectors(
    vectors: dict[str, np.ndarray], train: Ratings, valid: Ratings, seed: int
) -> np.ndarray:
    """float64 [n]: predictions from float32 [cases, width] vectors of each part, as the dense network learns them."""
    torch.manual_seed(seed)
    model = Regression(vectors["train"].shape[1], train.value.mean())
    return fitted(model, vectors, train, valid, seed=seed, learning_rate=0.001, decay=0.01)
