"""The training curves of a bundle: `curves.png`, and `curves.html` with the values and the recipe."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from lookalike._files import write_file, write_text
from lookalike._html import page_environment
from lookalike.models.info import TrainingReport

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")  # Okabe and Ito, colour-blind safe


def write_curves(folder: Path, reports: Sequence[TrainingReport], measure: str) -> bool:
    """Write `curves.png` and `curves.html` into a bundle; return False, with nothing written, without fine-tuning."""
    fine_tuned = [report for report in reports if report.epochs]
    if not fine_tuned:
        return False
    image = draw_curves(fine_tuned, measure)
    write_file(folder / "curves.png", lambda path: path.write_bytes(image))
    page = page_environment().get_template("curves.html.j2")
    names = " + ".join(report.backbone for report in reports)
    encoded = base64.b64encode(image).decode()
    write_text(folder / "curves.html", page.render(names=names, measure=measure, image=encoded, reports=reports))
    return True


def draw_curves(reports: Sequence[TrainingReport], measure: str) -> bytes:
    """Return a PNG of loss and, where it was taken, validation measure by epoch, one colour per backbone."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    measured = any(epoch.measure is not None for report in reports for epoch in report.epochs)
    panels = 2 if measured else 1  # a refit has no validation images
    figure = Figure(figsize=(5 * panels, 5), dpi=120, layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for report, colour in zip(reports, _COLOURS * len(reports), strict=False):
        name, numbers = report.backbone, range(1, len(report.epochs) + 1)
        axes[0].plot(numbers, [e.loss for e in report.epochs], "o-", color=colour, label=name)
        points = [(n, e.measure) for n, e in zip(numbers, report.epochs, strict=True) if e.measure is not None]
        if not points or report.measures is None:
            continue
        axes[1].plot(*zip(*points, strict=True), "o-", color=colour, label=f"{name}, fine-tuned")
        stages = (
            (report.measures.frozen, "--", "frozen"),
            (report.measures.head, ":", "frozen, best head"),
            (report.measures.selected, "-.", "selected"),
        )
        for value, style, text in stages:
            if value is not None:
                axes[1].axhline(value, color=colour, linestyle=style, label=f"{name}, {text}")
    axes[0].set_ylabel("mean training loss")
    if measured:
        axes[1].set_ylabel(f"{measure} on validation")
    for axis in axes:
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axis.grid(visible=True, color="#dddddd", linewidth=0.7)
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=panels, frameon=False, fontsize=8)
    out = BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()
