# SPDX-License-Identifier: AGPL-3.0-or-later
"""report.html: one file that stands alone, to be forwarded. It loads nothing, and its policy forbids the browser to."""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from ultra_mq.core import write_text
from ultra_mq.measure import FEW_HOLDERS, ClassLoss
from ultra_mq.report.gallery import Picture
from ultra_mq.report.tables import points


@dataclass(frozen=True)
class ChartSection:
    """A chart with its heading.

    Attributes:
        name: Identifier in the page.
        heading: Heading.
        text: What it shows, and what pointing and choosing do.
        spec: Vega-Lite specification.
        chooses: What choosing in it does: ``rows`` marks the row of a table, or the name of a chart to filter.
    """

    name: str
    heading: str
    text: str
    spec: Mapping[str, Any]
    chooses: str = ""


@dataclass(frozen=True)
class ClassTable:
    """Losses of every class of one variant.

    Attributes:
        variant: Name of the variant.
        metric: What is lost, in words.
        classes: The largest loss first.
        sides: What the two models are called.
    """

    variant: str
    metric: str
    classes: tuple[ClassLoss, ...]
    sides: tuple[str, str] = ("float", "quantized")

    @property
    def judged(self) -> tuple[ClassLoss, ...]:
        """Classes that enough images hold."""
        return tuple(one for one in self.classes if one.resolved)

    @property
    def open(self) -> tuple[ClassLoss, ...]:
        """Classes that too few images hold to be judged."""
        return tuple(one for one in self.classes if not one.resolved)

    @property
    def summary(self) -> str:
        """Who surely lost, and how many would by chance."""
        names = ", ".join(one.name for one in self.judged if one.surely_lost) or "none"
        text = (
            f"Classes of {self.variant} that lost more {self.metric} than their interval: {names}. Of "
            f"{len(self.judged)} classes that at least {FEW_HOLDERS} images hold, {0.025 * len(self.judged):.1f} would "
            f"be among them by chance"
        )
        return f"{text}; {len(self.open)} in fewer images cannot be judged." if self.open else f"{text}."


@dataclass(frozen=True)
class Page:
    """What a page shows, from the top.

    Attributes:
        title: Model and data.
        subtitle: Images, size, and what it is compared with.
        verdicts: Sentences, the first one large.
        columns: Headings of the table of models.
        rows: Its rows.
        warnings: What the reader should know, folded away where it is much.
        marked: Name of the model to mark.
        charts: Charts, in order.
        classes: Losses by class.
        pictures: Pictures below ``folder``.
        legend: What the two sides of a picture are.
        commands: Commands that rebuild what is shown.
        details: Everything else, as safe HTML.
        versions: Packages and their versions.
    """

    title: str
    subtitle: str
    verdicts: Sequence[str]
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    warnings: Sequence[str] = ()
    marked: str | None = None
    charts: Sequence[ChartSection] = ()
    classes: Sequence[ClassTable] = ()
    pictures: Sequence[Picture] = ()
    legend: str = ""
    commands: Sequence[str] = ()
    details: str = ""
    versions: Mapping[str, str] | None = None


def write_page(page: Page, folder: Path, name: str) -> Path:
    """Write a page into a folder, atomically; pictures and scripts are in it.

    Args:
        page: What it shows.
        folder: Folder that the pictures are below.
        name: Name of the file.
    """
    embedded = {one.file: base64.b64encode((folder / one.file).read_bytes()).decode() for one in page.pictures}
    text = (
        templates()
        .get_template("page.html.j2")
        .render(
            page=page,
            embedded=embedded,
            vega=_vega() if page.charts else "",
            # A closing tag inside of a name must not end the script that it stands in.
            specs=json.dumps({chart.name: chart.spec for chart in page.charts}).replace("<", "\\u003c"),
        )
    )
    path = folder / name
    write_text(path, text)
    return path


@functools.cache
def templates() -> jinja2.Environment:
    """The templates of reports; values are escaped in HTML and not in Markdown."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ultra_mq.report"),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(points=points)
    return environment


@functools.cache
def _vega() -> str:
    """Vega, Vega-Lite and vega-embed as one script, from the package that carries them."""
    import vl_convert

    bundle: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # its default is not in its types
    return bundle.replace("</script", "<\\/script")
