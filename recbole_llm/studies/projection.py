"""Vectors on a plane: t-SNE, as a picture and as a page to look around in."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..storage.files import atomically
from ..storage.screen import printable


def tsne(vectors: np.ndarray, seed: int) -> np.ndarray:
    """float32 [n, 2] of float32 [n, width] by cosine (van der Maaten & Hinton, JMLR 2008)."""
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


def draw(
    panels: dict[str, np.ndarray],
    colours: dict[str, Sequence[str]],
    told: dict[str, Sequence[str]],
    title: str,
    folder: Path,
) -> list[Path]:
    """Write `projection.png` and `projection.html`, one panel beside the other.

    Parameters
    ----------
    panels : panel's title -> float [n, 2]. colours : the same -> what each point belongs to. told : the same -> what each point is.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plot
    from plotly.subplots import make_subplots

    names = list(dict.fromkeys(name for group in colours.values() for name in group))
    palette = plot.get_cmap("tab10")
    figure, axes = plot.subplots(1, len(panels), figsize=(6 * len(panels), 5.5), squeeze=False)
    page = make_subplots(rows=1, cols=len(panels), subplot_titles=list(map(_plain, panels)))
    for number, (panel, points) in enumerate(panels.items()):
        axis, group = axes[0, number], np.asarray(colours[panel])
        for index, name in enumerate(names):
            chosen = np.flatnonzero(group == name)
            red, green, blue, _ = (int(255 * part) for part in palette(index % 10))
            axis.scatter(*points[chosen].T, s=5, color=palette(index % 10), label=name)
            page.add_scattergl(
                x=points[chosen, 0], y=points[chosen, 1], mode="markers", name=_plain(name), legendgroup=_plain(name), showlegend=number == 0,
                marker={"size": 4, "color": f"rgb({red},{green},{blue})"}, text=[_plain(told[panel][row]) for row in chosen], hoverinfo="text+name",
                row=1, col=number + 1,
            )  # fmt: skip
        axis.set_title(printable(panel), parse_math=False)
        axis.set_xticks([])
        axis.set_yticks([])
    handles, _ = axes[0, 0].get_legend_handles_labels()
    legend = figure.legend(
        handles,
        [printable(name) for name in names],
        loc="lower center",
        ncols=len(names),
        markerscale=3,
        frameon=False,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # a name may have a $
    figure.suptitle(printable(title), parse_math=False)
    figure.tight_layout(rect=(0, 0.05, 1, 1))  # the legend's place
    page.update_layout(title=_plain(title))
    folder.mkdir(parents=True, exist_ok=True)
    picture, html = folder / "projection.png", folder / "projection.html"
    with atomically(picture) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plot.close(figure)
    with atomically(html) as temporary:
        page.write_html(temporary, include_plotlyjs=True)
    return [picture, html]


def _plain(text: str) -> str:
    """Text as plotly shows it as it is: it takes some tags for markup."""
    return escape(printable(text), quote=False)
