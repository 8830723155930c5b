"""Vectors projected onto a plane by t-SNE, as a picture and as an interactive page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..storage.files import atomically
from ..storage.screen import printable


def tsne(vectors: np.ndarray, seed: int) -> np.ndarray:
    """Project vectors onto a plane by t-SNE with cosine distances.

    The method is that of van der Maaten & Hinton (JMLR 2008).

    Parameters
    ----------
    vectors : ndarray of float32 [n, width]
        The vectors.
    seed : int
        Seed of the random initialisation.

    Returns
    -------
    ndarray of float32 [n, 2]
        Points.

    Raises
    ------
    UserError
        If there are fewer than five vectors.
    """
    from sklearn.manifold import TSNE

    if len(vectors) < 5:
        raise UserError(
            f"a projection needs some points, found {len(vectors)}; set points in the experiment's "
            "file"
        )
    perplexity = min(30.0, (len(vectors) - 1) / 3)
    return TSNE(
        metric="cosine", init="random", perplexity=perplexity, random_state=seed
    ).fit_transform(vectors)


@dataclass(frozen=True)
class _Group:
    """The points of one panel that share a colour."""

    name: str
    points: np.ndarray  # float [points, 2]
    labels: list[str]  # shown when the mouse is over a point
    colour: tuple[float, ...]  # red, green, blue, opacity, each from 0 to 1


def draw(
    panels: Mapping[str, np.ndarray],
    colours: Mapping[str, Sequence[str]],
    labels: Mapping[str, Sequence[str]],
    title: str,
    folder: Path,
) -> list[Path]:
    """Write `projection.png` and `projection.html`, with the panels side by side.

    Parameters
    ----------
    panels : mapping of str to ndarray of float [n, 2]
        The points of each panel, by the panel's title.
    colours : mapping of str to sequence of str
        The group of each point, by the panel's title. Points of one group have one colour.
    labels : mapping of str to sequence of str
        The label of each point, by the panel's title.
    title : str
        Title of the whole figure.
    folder : Path
        Folder of the files. It is made if it does not exist.

    Returns
    -------
    list of Path
        The picture and the page.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    palette = pyplot.get_cmap("tab10")
    names = list(dict.fromkeys(chain.from_iterable(colours.values())))
    by_panel: dict[str, list[_Group]] = {panel: [] for panel in panels}
    for panel, points in panels.items():
        group_of_point = np.asarray(colours[panel])
        for number, name in enumerate(names):
            rows = np.flatnonzero(group_of_point == name).tolist()
            group_labels = [labels[panel][row] for row in rows]
            by_panel[panel].append(_Group(name, points[rows], group_labels, palette(number % 10)))
    folder.mkdir(parents=True, exist_ok=True)
    picture, html = folder / "projection.png", folder / "projection.html"
    with atomically(picture) as temporary:
        _draw_picture(by_panel, title, temporary)
    with atomically(html) as temporary:
        _draw_page(by_panel, title).write_html(temporary, include_plotlyjs=True)
    return [picture, html]


def _draw_picture(panels: Mapping[str, Sequence[_Group]], title: str, path: Path) -> None:
    """Write the panels as a PNG file."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(panels), figsize=(6 * len(panels), 5.5), squeeze=False)
    for axis, (panel, groups) in zip(axes[0], panels.items(), strict=True):
        for group in groups:
            axis.scatter(*group.points.T, s=5, color=group.colour, label=group.name)
        axis.set_title(printable(panel), parse_math=False)
        axis.set_xticks([])
        axis.set_yticks([])
    handles, names = axes[0, 0].get_legend_handles_labels()
    legend = figure.legend(
        handles,
        [printable(name) for name in names],
        loc="lower center",
        ncols=len(names),
        markerscale=3,
        frameon=False,
    )
    for text in legend.get_texts():
        # a name may contain a $, which would begin a formula
        text.set_parse_math(False)
    figure.suptitle(printable(title), parse_math=False)
    # leaves room for the legend at the bottom
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(path, dpi=110, format="png")
    pyplot.close(figure)


def _draw_page(panels: Mapping[str, Sequence[_Group]], title: str) -> Any:
    """The panels as a plotly figure."""
    from plotly.subplots import make_subplots

    page = make_subplots(rows=1, cols=len(panels), subplot_titles=list(map(_plain, panels)))
    for column, groups in enumerate(panels.values(), start=1):
        for group in groups:
            red, green, blue, _ = (int(255 * part) for part in group.colour)
            page.add_scattergl(
                x=group.points[:, 0],
                y=group.points[:, 1],
                mode="markers",
                name=_plain(group.name),
                legendgroup=_plain(group.name),
                showlegend=column == 1,
                marker={"size": 4, "color": f"rgb({red},{green},{blue})"},
                text=[_plain(label) for label in group.labels],
                hoverinfo="text+name",
                row=1,
                col=column,
            )
    page.update_layout(title=_plain(title))
    return page


def _plain(text: str) -> str:
    """Escape the tags that plotly would read as markup."""
    return escape(printable(text), quote=False)
