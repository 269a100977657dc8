"""A dataset's report as one HTML page that a person reads with pleasure.

Guarantees a page that asks nothing of the network, runs no script, and shows every text of the data as text. Shows
personal data and secrets as kinds and counts; texts in examples are masked here once more.
"""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.pipeline.data import privacy
from tunewright.pipeline.data.advice import of as advice_of

if TYPE_CHECKING:
    from jinja2 import Template

MARKED_LENGTHS = (512, 1024, 2048, 4096, 8192)
# Bins of the histogram that are labelled; those of `SPARSE_LABELS` on narrow screens too.
LABELLED = (0, *(2**power for power in range(4, 24)))
SPARSE_LABELS = LABELLED[::2]
SHOWN_REASONS = 12
SHOWN_PATH = 40


def render(name: str, dataset_id: str, report: dict[str, Any]) -> str:
    """The page for a dataset called `name`; `report` as it stands in report.json (see `advice` for its keys)."""
    advice = advice_of(report)
    return _template().render(
        name=name,
        dataset_id=dataset_id,
        report=report,
        tokens=report.get("tokens") or {},
        advice=advice,
        # A report's warnings may end with its advice.
        warnings=[sentence for sentence in report.get("warnings") or [] if sentence not in advice],
        fits=_informative(report),
        marked=MARKED_LENGTHS,
        labelled=LABELLED,
        sparse_labels=SPARSE_LABELS,
        shown_reasons=SHOWN_REASONS,
    )


def _informative(report: dict[str, Any]) -> dict[str, dict[str, float]]:
    """What each sequence length keeps, up to the first that keeps everything."""
    fits: dict[str, dict[str, float]] = (report.get("tokens") or {}).get("fits") or {}
    cutting = sum(kept["rows"] < 1 for kept in fits.values())
    return dict(list(fits.items())[: max(3, cutting + 1)])


@cache
def _template() -> "Template":
    # An idle server does not pay for it.
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    for shown in (_count, _size, _percent, _width, _words, _end, _masked):
        environment.filters[shown.__name__.lstrip("_")] = shown
    return environment.get_template("report.html.jinja")


def _count(number: float) -> str:
    return f"{number:,.0f}"


def _size(number: float) -> str:
    """Large numbers in words, three figures of them: 172,000, 4.24 billion."""
    for unit, name in ((1e9, "billion"), (1e6, "million")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{float(f'{number:.3g}'):,.0f}"


def _percent(share: float) -> str:
    """Whole percents, with one decimal where these say too little: 0.4%, 12%, 99.6%."""
    percent = 100 * share
    if 0 < percent < 0.1:
        return "< 0.1%"
    if 99.9 < percent < 100:
        return "> 99.9%"
    near_an_end = percent < 9.95 or percent > 90
    return f"{percent:.1f}%".replace(".0%", "%") if near_an_end else f"{percent:.0f}%"


def _width(share: float) -> str:
    """For a style attribute; what is there at all can be seen."""
    return f"{max(0.4, min(100, 100 * share)) if share else 0:.1f}%"


def _words(key: str) -> str:
    return key.replace("_", " ")


def _end(path: str) -> str:
    return path if len(path) <= SHOWN_PATH else f"…{path[-SHOWN_PATH:]}"


def _masked(text: object) -> str:
    shown = str(text)
    return privacy.masked(shown, privacy.find(shown))
