"""Rating prediction from vectors of history and item, with the item mean and PMF as baselines."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ..contracts.interactions import Interactions

# most epochs, epochs without an improvement before training stops, and ratings of a step
EPOCHS, PATIENCE, BATCH = 100, 5, 1024


@dataclass(frozen=True)
class Ratings:
    """Ratings of items by users.

    Attributes
    ----------
    user : ndarray of int64, [n_ratings]
        Index of the user of each rating.
    item : ndarray of int64, [n_ratings]
        Index of the item.
    value : ndarray of float64, [n_ratings]
        The rating.
    """

    user: np.ndarray
    item: np.ndarray
    value: np.ndarray

    @classmethod
    def of_rows(cls, interactions: Interactions, rows: np.ndarray, column: str) -> "Ratings":
        """Select the ratings of some interactions.

        Parameters
        ----------
        interactions : Interactions
            The dataset.
        rows : ndarray of int, [n_ratings]
            Rows of interactions.
        column : str
            Name of the column with the ratings.

        Returns
        -------
        Ratings
            Their ratings, in the order of `rows`.
        """
        return cls(
            interactions.user[rows].astype(np.int64),
            interactions.item[rows].astype(np.int64),
            interactions.columns[column][rows].astype(np.float64),
        )

    def __len__(self) -> int:
        return len(self.value)


def errors(predicted: np.ndarray, value: np.ndarray) -> dict[str, float]:
    """Compute the errors of predicted ratings.

    Parameters
    ----------
    predicted, value : ndarray of float, [n_ratings]
        Predicted and true ratings.

    Returns
    -------
    dict of str to float
        "rmse", the root of the mean squared error, and "mae", the mean absolute error.

    Examples
    --------
    >>> errors(np.array([3.0, 4.0]), np.array([3.0, 2.0]))["mae"]
    1.0
    """
    gap = predicted - value
    return {"rmse": float(np.sqrt(np.mean(gap**2))), "mae": float(np.mean(np.abs(gap)))}


def item_mean(train: Ratings, test: Ratings) -> np.ndarray:
    """Predict ratings by the mean of the item's training ratings.

    Parameters
    ----------
    train : Ratings
        Training ratings.
    test : Ratings
        Ratings to predict.

    Returns
    -------
    ndarray of float64, [n_ratings]
        Predictions for `test`; of an item without training ratings, the mean of all.
    """
    n_items = max(train.item.max(), test.item.max()) + 1
    count = np.bincount(train.item, minlength=n_items)
    total = np.bincount(train.item, train.value, minlength=n_items)
    means = np.where(count > 0, total / np.maximum(count, 1), train.value.mean())
    predicted: np.ndarray = means[test.item]
    return predicted


class Factors(nn.Module):
    """Probabilistic matrix factorisation (Salakhutdinov and Mnih, NeurIPS 2007).

    The prediction is mean + u_i · v_j. The priors of the factors are a weight decay.

    Parameters
    ----------
    users, items : int
        Numbers of users and items.
    mean : float
        Mean of the training ratings.
    width : int
        Number of factors.
    """

    def __init__(self, users: int, items: int, mean: float, width: int = 16) -> None:
        super().__init__()
        self.user = nn.Embedding(users, width)
        self.item = nn.Embedding(items, width)
        self.mean = mean
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=0.1)

    def forward(self, pairs: torch.Tensor) -> torch.Tensor:
        """Predict the ratings of pairs, int64 [n, 2] of user and item: float32 [n]."""
        products: torch.Tensor = self.user(pairs[:, 0]) * self.item(pairs[:, 1])
        return self.mean + products.sum(dim=1)


class Regression(nn.Module):
    """A dense network over concatenated vectors of history and item, as in ST5-Seq.

    Parameters
    ----------
    width : int
        Length of the concatenated vectors.
    mean : float
        Mean of the training ratings.
    hidden : int
        Width of the hidden layer.
    """

    def __init__(self, width: int, mean: float, hidden: int = 256) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(0.2), nn.Linear(hidden, 1)
        )
        self.mean = mean

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """Predict ratings from the vectors of pairs, float32 [n, width]: float32 [n]."""
        predicted: torch.Tensor = self.layers(vectors)
        return self.mean + predicted[:, 0]


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
    """Train a model of ratings until its validation RMSE stops improving.

    Parameters
    ----------
    model : Module
        Returns ratings, float [n_ratings].
    inputs : dict of str to ndarray, [n_ratings, ...] each
        Part ("train", "valid" or "test") -> the argument of `model`.
    train, valid : Ratings
        Training and validation ratings.
    seed : int
        Seed of the order of training.
    learning_rate, decay : float
        Settings of AdamW.

    Returns
    -------
    ndarray of float64, [n_ratings]
        Predictions for the test part after the best epoch, within the range of training ratings.
    """
    lowest, highest = train.value.min(), train.value.max()
    data = {part: torch.from_numpy(values) for part, values in inputs.items()}
    target = torch.from_numpy(train.value).float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=decay)
    order = torch.Generator().manual_seed(seed)

    def predict(part: str) -> np.ndarray:
        model.eval()
        with torch.no_grad():
            predicted: np.ndarray = model(data[part]).double().clamp(lowest, highest).numpy()
        return predicted

    best_rmse, best, waited = np.inf, predict("test"), 0
    for _ in range(EPOCHS):
        model.train()
        for rows in torch.split(torch.randperm(len(train), generator=order), BATCH):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(data["train"][rows]), target[rows])
            torch.autograd.backward(loss)
            optimizer.step()
        rmse = errors(predict("valid"), valid.value)["rmse"]
        waited += 1
        if rmse < best_rmse:
            best_rmse, best, waited = rmse, predict("test"), 0
        if waited > PATIENCE:
            break
    return best


def pmf(train: Ratings, valid: Ratings, test: Ratings, seed: int) -> np.ndarray:
    """Predict ratings by probabilistic matrix factorisation, see `Factors`.

    Parameters
    ----------
    train, valid : Ratings
        Training and validation ratings.
    test : Ratings
        Ratings to predict.
    seed : int
        Seed of weights and of the order of training.

    Returns
    -------
    ndarray of float64, [n_ratings]
        Predictions for `test`.
    """
    torch.manual_seed(seed)
    parts = {"train": train, "valid": valid, "test": test}
    n_users = max(part.user.max() for part in parts.values()) + 1
    n_items = max(part.item.max() for part in parts.values()) + 1
    model = Factors(n_users, n_items, train.value.mean())
    inputs = {name: np.stack([part.user, part.item], axis=1) for name, part in parts.items()}
    return fitted(model, inputs, train, valid, seed=seed, learning_rate=0.005, decay=0.1)


def by_vectors(
    vectors: dict[str, np.ndarray], train: Ratings, valid: Ratings, seed: int
) -> np.ndarray:
    """Predict ratings from vectors of history and item, by `Regression`.

    Parameters
    ----------
    vectors : dict of str to ndarray of float32, [n_ratings, width] each
        Part ("train", "valid" or "test") -> concatenated vectors.
    train, valid : Ratings
        Training and validation ratings.
    seed : int
        Seed of weights and of the order of training.

    Returns
    -------
    ndarray of float64, [n_ratings]
        Predictions for the test part.
    """
    torch.manual_seed(seed)
    model = Regression(vectors["train"].shape[1], train.value.mean())
    return fitted(model, vectors, train, valid, seed=seed, learning_rate=0.001, decay=0.01)
