"""The course of a training, drawn: `curves.png`, and `curves.html` with the figures and the recipe beside it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from lookalike._files import write_file

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")  # Okabe and Ito: told apart by all eyes

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Training of {{ names }}</title>
<style>
 body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
 img { max-width: 100%; height: auto; }
 table { border-collapse: collapse; margin: .5rem 0 1.5rem; font-variant-numeric: tabular-nums; }
 td, th { padding: .15rem .9rem .15rem 0; text-align: right; border-bottom: 1px solid #ddd; }
 td:first-child, th:first-child { text-align: left; }
</style>
<h1>Training of {{ names }}</h1>
<p><img alt="Loss and validation {{ measure }} by epoch" src="data:image/png;base64,{{ picture }}"></p>
{% for report in reports %}
<h2>{{ report.backbone }}</h2>
<p>Validation {{ measure }}{% if report.history and report.history[0].measure is not defined %} of the first training
{%- endif %}:
{%- for stage, value in report.validation.items() %} {{ stage }} {{ "%.4f"|format(value) }}{{ "," if not loop.last }}
{%- endfor %}.
{% if report.interpolation %}Kept: {{ "%.0f"|format(100 * report.interpolation.share) }} % of the fine-tuned weights,
the rest of those it came with.{% endif %}
{% if report.view %} Pictures are seen: {{ report.view }}.{% endif %}
{% if report.resolved.precision %} Precision {{ report.resolved.precision }}, images {{ report.resolved.sampler }}.
{%- endif %}
{% if report.shrinkage %} The head that training starts from is whitened within the classes, shrinkage
{{ "%g"|format(report.shrinkage) }}.{% endif %}
{% if report.last_head %} The head was fitted anew after training, shrinkage {{ report.last_head[0] }}, emphasis
{{ report.last_head[1] }}.{% endif %}</p>
{% if report.rates|length > 1 %}<p>Learning rates were changed on the way:
{%- for r in report.rates %} {{ "%g"|format(r.lr) }} and {{ "%g"|format(r.head_lr) }} for the head
{%- if r.epoch %} after epoch {{ r.epoch }}{% endif %}{{ "," if not loop.last }}
{%- endfor %}.</p>{% endif %}
{% if report.history %}<table><tr><th>epoch<th>loss<th>validation {{ measure }}<th>seconds</tr>
{% for epoch in report.history %}<tr><td>{{ loop.index }}<td>{{ "%.4f"|format(epoch.loss) }}
<td>{{ "%.4f"|format(epoch.measure) if epoch.measure is defined else "–" }}<td>{{ "%.0f"|format(epoch.seconds) }}</tr>
{% endfor %}</table>{% endif %}
<details><summary>Recipe{{ " " ~ report.resolved.recipe if report.resolved.recipe }}</summary><table>
{% for name, value in report.recipe.items() %}
<tr><td>{{ name }}<td>{{ "%.4g"|format(value) if value is float else value }}</tr>
{% endfor %}</table></details>
{% endfor %}
</html>
"""


def write_curves(folder: Path, reports: Sequence[Mapping[str, Any]], measure: str) -> bool:
    """Write `curves.png` and `curves.html` into a folder; nothing where no backbone was trained as a whole.

    Args:
        folder: of the bundle.
        reports: one a backbone, as `bundle.json` has them under `training`.
        measure: name of the validation measure.

    Returns:
        Whether there was anything to draw.

    """
    drawn = [report for report in reports if report.get("history")]
    if not drawn:
        return False
    import jinja2

    picture = curves_png(drawn, measure)
    write_file(folder / "curves.png", lambda path: _put(path, picture))
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True).from_string(_PAGE)
    text = page.render(
        names=" + ".join(report["backbone"] for report in reports),
        measure=measure,
        picture=base64.b64encode(picture).decode(),
        reports=[
            {
                "interpolation": None,
                "shrinkage": None,
                "view": None,
                "last_head": None,
                "history": [],
                "rates": [],
                "recipe": {},
                "validation": {},
                **r,
                # of bundles that did not say yet which recipe it was
                "resolved": {"recipe": "", "precision": "", **r.get("resolved", {})},
            }
            for r in reports
        ],
    )
    write_file(folder / "curves.html", lambda path: _put(path, text.encode()))
    return True


def _put(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def curves_png(reports: Sequence[Mapping[str, Any]], measure: str) -> bytes:
    """Draw loss and, where taken, validation measure by epoch, one colour a backbone; the frozen one is dashed."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    measured = any("measure" in epoch for report in reports for epoch in report["history"])
    panels = 2 if measured else 1  # what is trained again on all images has nothing to be measured on
    figure = Figure(figsize=(5 * panels, 5), dpi=120, layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for report, colour in zip(reports, _COLOURS * len(reports), strict=False):
        history = report["history"]
        epochs = range(1, len(history) + 1)
        name = report["backbone"]
        axes[0].plot(epochs, [e["loss"] for e in history], "o-", color=colour, label=name)
        measures = [(n, e["measure"]) for n, e in zip(epochs, history, strict=True) if "measure" in e]
        if measures:
            axes[1].plot(*zip(*measures, strict=True), "o-", color=colour, label=f"{name}, fine-tuned")
        for stage, style in (("frozen", "--"), ("head", ":"), ("kept", "-.")):
            value = report.get("validation", {}).get(stage)
            if measures and value is not None:
                words = {"frozen": "frozen", "head": "frozen, with its best head", "kept": "as kept"}[stage]
                axes[1].axhline(value, color=colour, linestyle=style, label=f"{name}, {words}")
    axes[0].set_ylabel("training loss, mean of the epoch")
    if measured:
        axes[1].set_ylabel(f"{measure} on validation")
    for axis in axes:
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axis.grid(visible=True, color="#dddddd", linewidth=0.7)
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2 if panels == 2 else 1, frameon=False, fontsize=8)
    out = BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()
