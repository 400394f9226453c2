"""What the pages of all documents have in common: sizes, tables that go on, and numbered pages."""

import datetime as dt
import hashlib
import io
from collections.abc import Iterable, Sequence
from decimal import Decimal

from reportlab.lib import colors
from reportlab.lib.enums import TA_RIGHT
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import Flowable, Paragraph, SimpleDocTemplate, Spacer, Table, TableStyle

from billing.pdf import fonts
from billing.pdf.fonts import BOLD, PLAIN
from marketplace.core.money import Money, currency_exponent

INK, QUIET, LINE = (
    colors.HexColor("#1c1f24"),
    colors.HexColor("#667080"),
    colors.HexColor("#d5dae0"),
)
ACCENT, SHADE, WARNING = (colors.HexColor(code) for code in ("#0f766e", "#eef6f5", "#b45309"))
MARGIN = 18 * mm
WIDTH = A4[0] - 2 * MARGIN
GUTTER = 6 * mm
FRAME = 6  # points that the library leaves free around its frame


def style(
    *, size: int = 8, bold: bool = False, right: bool = False, color: colors.Color = INK
) -> ParagraphStyle:
    return ParagraphStyle(
        f"{size} {bold} {right} {color.hexval()}",
        fontName=BOLD if bold else PLAIN,
        fontSize=size,
        leading=size + size // 3 + 1,
        textColor=color,
        alignment=TA_RIGHT if right else 0,
        splitLongWords=1,
    )


def text(
    words: str,
    *,
    size: int = 8,
    bold: bool = False,
    right: bool = False,
    color: colors.Color = INK,
) -> Paragraph:
    """Return a paragraph of anybody's words: nothing in them is markup, and each line of them is one."""
    lines = [fonts.marked_up(line) for line in words.split("\n")]
    return Paragraph("<br/>".join(lines), style(size=size, bold=bold, right=right, color=color))


def table(
    rows: Sequence[Sequence[str | Flowable]],
    *,
    widths: Sequence[int],
    texts: int = 1,
    size: int = 7,
    head: bool = True,
    strong_last: bool = False,
    columns: int = 1,
) -> Table:
    """Return a table whose head stands on every page that it reaches; widths are parts of the whole.

    The first `texts` columns hold text, the rest figures. It is as wide as one of `columns` of the page.
    """
    whole = sum(widths)
    cells: list[list[Flowable]] = []
    for number, row in enumerate(rows):
        bold = (head and number == 0) or (strong_last and number == len(rows) - 1)
        quiet = QUIET if head and number == 0 else INK
        cells.append(
            [
                cell
                if isinstance(cell, Flowable)
                else text(cell, size=size, bold=bold, right=column >= texts, color=quiet)
                for column, cell in enumerate(row)
            ]
        )
    made = Table(
        cells,
        colWidths=[(WIDTH - (columns - 1) * GUTTER) * width / whole / columns for width in widths],
        repeatRows=1 if head else 0,
    )
    made.setStyle(
        TableStyle(
            [
                ("VALIGN", (0, 0), (-1, -1), "TOP"),
                ("LINEBELOW", (0, 0), (-1, -1), Decimal("0.4"), LINE),
                *([("LINEBELOW", (0, 0), (-1, 0), 1, QUIET)] if head else []),
                ("LEFTPADDING", (0, 0), (-1, -1), 2),
                ("RIGHTPADDING", (0, 0), (-1, -1), 2),
                ("TOPPADDING", (0, 0), (-1, -1), 2),
                ("BOTTOMPADDING", (0, 0), (-1, -1), 3),
            ]
        )
    )
    return made


def beside(
    left: Sequence[Flowable], right: Sequence[Flowable], *, parts: tuple[int, int] = (1, 1)
) -> Table:
    """Return two columns, of equal width where `parts` does not say otherwise."""
    first = WIDTH * parts[0] / sum(parts)
    made = Table(
        [[list(left), list(right)]], colWidths=[first + GUTTER / 2, WIDTH - first - GUTTER / 2]
    )
    made.setStyle(
        TableStyle(
            [
                ("VALIGN", (0, 0), (-1, -1), "TOP"),
                ("LEFTPADDING", (0, 0), (0, 0), 0),
                ("RIGHTPADDING", (-1, 0), (-1, 0), 0),
                ("RIGHTPADDING", (0, 0), (0, 0), GUTTER),
                ("LEFTPADDING", (-1, 0), (-1, 0), 0),
                ("TOPPADDING", (0, 0), (-1, -1), 0),
                ("BOTTOMPADDING", (0, 0), (-1, -1), 0),
            ]
        )
    )
    return made


def head(
    title: str, *, party: str, party_id: str = "", about: str, simulated: str = ""
) -> list[Flowable]:
    """Return the top of a page: what it is, for whom, what of, and in red what of it is not real."""
    whose = [text(party, size=10, bold=True, right=True)]
    if party_id:
        whose.append(text(party_id, right=True))
    found: list[Flowable] = [
        beside([text(title, size=16, bold=True)], whose, parts=(2, 1)),
        Spacer(0, 1 * mm),
        text(about, color=QUIET),
    ]
    if simulated:
        found.append(text(f"Simulated: {simulated}", bold=True, color=WARNING))
    return found


def as_it_stands(at: dt.datetime) -> str:
    """Return what a page that is not final says of itself."""
    return f"As it stands at {at:%Y-%m-%d %H:%M} UTC; not final."


def heading(words: str) -> list[Flowable]:
    return [Spacer(0, 4 * mm), text(words, size=10, bold=True, color=ACCENT), Spacer(0, 1 * mm)]


def amount(money: Money) -> str:
    """Return an amount without its currency, in groups of three digits."""
    exponent = currency_exponent(money.currency)
    return f"{Decimal(money.amount_minor).scaleb(-exponent):,.{exponent}f}"


def build(story: Iterable[Flowable], *, title: str, subject: str, footer: str) -> bytes:
    """Return the pages as PDF, each with its number; nothing in it depends on the clock or the machine."""
    fonts.known()  # they are used by name from here on
    target = io.BytesIO()
    document = SimpleDocTemplate(
        target,
        pagesize=A4,
        leftMargin=MARGIN - FRAME,
        rightMargin=MARGIN - FRAME,
        topMargin=MARGIN,
        bottomMargin=MARGIN,
        title=title,
        subject=subject,
        author="",
        invariant=1,
    )
    document.build(list(story), canvasmaker=_numbered(footer))
    return target.getvalue()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _numbered(footer: str) -> type[Canvas]:
    """Return a canvas that keeps its pages until it knows how many there are."""

    class Numbered(Canvas):  # type: ignore[misc] # the library has no types
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)
            self._kept: list[dict[str, object]] = []

        def showPage(self) -> None:  # noqa: N802 - the library's name
            self._kept.append(dict(self.__dict__))
            self._startPage()

        def save(self) -> None:
            for number, page in enumerate(self._kept, start=1):
                self.__dict__.update(page)
                line = text(footer, size=6, color=QUIET)
                line.wrapOn(self, WIDTH - 20 * mm, 12 * mm)
                line.drawOn(self, MARGIN, 9 * mm)
                count = text(f"{number} / {len(self._kept)}", size=6, right=True, color=QUIET)
                count.wrapOn(self, 20 * mm, 12 * mm)
                count.drawOn(self, MARGIN + WIDTH - 20 * mm, 9 * mm)
                super().showPage()
            super().save()

    return Numbered
