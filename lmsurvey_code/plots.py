"""The house style of every figure, and the few figures that more than one chapter draws.

Figures are small SVGs with a fixed salt and no date: they read on a phone, and a changed curve is a changed output.
Colours are those of Okabe & Ito (2008), with a marker and a line style beside each colour, so hue is never needed.
"""

import matplotlib.pyplot as plt
from cycler import cycler
from matplotlib.axes import Axes

WIDTH, HEIGHT = 5.0, 3.1  # inches: text of 10 points stays readable when a phone shows the figure 350 px wide
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def use_house_style() -> None:
    """Set the book's style, and SVG as the format of figures in a notebook. Call it once, in the imports' cell."""
    plt.rcParams.update(
        {
            "figure.figsize": (WIDTH, HEIGHT),
            "figure.facecolor": "white",
            "figure.constrained_layout.use": True,
            "font.size": 10,
            "axes.titlesize": 10.5,
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": "#E5E5E5",
            "axes.axisbelow": True,
            "lines.linewidth": 1.8,
            "lines.markersize": 5,
            "legend.frameon": False,
            "svg.hashsalt": "lmsurvey",
            "axes.prop_cycle": cycler(color=COLOURS) + cycler(linestyle=LINES) + cycler(marker=MARKERS),
        }
    )
    try:
        from matplotlib_inline.backend_inline import set_matplotlib_formats
    except ModuleNotFoundError:  # outside a notebook there is no inline backend to set
        return
    set_matplotlib_formats("svg", metadata={"Date": None, "Creator": None}, bbox_inches="tight")


def new_figure(title: str, x: str, y: str, *, width: float = WIDTH, height: float = HEIGHT) -> Axes:
    """Axes with the figure's one message as its title, and labels that carry units."""
    _, axes = plt.subplots(figsize=(width, height))
    axes.set(title=title, xlabel=x, ylabel=y)
    return axes
