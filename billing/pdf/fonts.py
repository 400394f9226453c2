"""The fonts of documents: every name is embedded, whatever its script, on a machine that has no fonts.

Most letters are Bitstream Vera, which comes with the library, or the operator's own font. What that lacks
is looked for in two more, each a pinned package under the SIL Open Font License: Noto Sans has the rest of
Latin, Greek and Cyrillic, Noto Sans CJK the Chinese, Japanese and Korean of all regions. The second draws
its letters with cubic curves, which the library does not embed: those that a document needs are turned into
quadratic ones, to a thousandth of their size, when it is written.
"""

import importlib.resources
import io
import re
import threading
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from xml.sax.saxutils import escape

from django.conf import settings
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.cu2quPen import Cu2QuPen
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib import TTFont as FontFile
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFNameBytes, TTFont, TTFontFace, TTFontFile

PLAIN, BOLD, WIDE, EASTERN = "Plain", "Bold", "Wide", "Eastern"
UNKNOWN = "?"  # of any other script; the JSON of a document has them all
_WIDE_FILE = ("fontpkg_noto_sans", "files/NotoSans[wdth,wght].ttf")
_EASTERN_FILE = ("noto_cjk_sans_jp_regular", "NotoSansCJKjp-Regular.otf")
_UNITS = 1000  # of a PDF to the em
_CURVE_ERROR_UNITS = (
    1  # of a thousand to the em: less than a printer's dot at the sizes of a document
)
_WORD = re.compile(r"\s+|\S+")
_SYMBOLIC = 1 << 2  # PDF 32000-1, table 123


@cache
def known() -> tuple[tuple[str, frozenset[int]], ...]:
    """Register the fonts, once for each process; return what each can show, the first to be asked first."""
    plain = TTFont(PLAIN, settings.PDF_FONT or "Vera.ttf")
    bold = TTFont(BOLD, settings.PDF_FONT_BOLD or settings.PDF_FONT or "VeraBd.ttf")
    wide = TTFont(WIDE, str(_packaged(*_WIDE_FILE)))
    eastern = _CubicFont(EASTERN, _packaged(*_EASTERN_FILE))
    for font in (plain, bold, wide, eastern):
        pdfmetrics.registerFont(font)
    # One mark for both weights: a letter that only one of them has would be missing in the other.
    both = set(plain.face.charToGlyph) & set(bold.face.charToGlyph)
    return (
        ("", frozenset(both)),
        (WIDE, frozenset(wide.face.charToGlyph)),
        (EASTERN, frozenset(eastern.face.charToGlyph)),
    )


def marked_up(words: str) -> str:
    """Return words as the library's markup, each word in one font that has all of it if there is one.

    Nothing in them is markup. A letter with an accent that no font has loses it.
    """

    def font_of(characters: str) -> str:
        codes = {ord(character) for character in characters}
        return next((name for name, has in known() if codes <= has), UNKNOWN)

    shown = "".join(character if character.isprintable() else " " for character in words)
    shown = unicodedata.normalize("NFC", shown)
    shown = "".join(
        unicodedata.normalize("NFD", character)[0] if font_of(character) == UNKNOWN else character
        for character in shown
    )
    runs: list[tuple[str, str]] = []
    for word in _WORD.findall(shown):
        name = font_of(word)
        runs += (
            [(name, word)] if name != UNKNOWN else [(font_of(letter), letter) for letter in word]
        )
    parts = []
    for name, run in groupby(runs, key=itemgetter(0)):
        characters = "".join(letters for _, letters in run)
        if name == UNKNOWN:
            parts.append(UNKNOWN * len(characters))
        elif name:
            parts.append(f'<font name="{name}">{escape(characters)}</font>')
        else:
            parts.append(escape(characters))
    return "".join(parts)


def _packaged(package: str, name: str) -> Path:
    return Path(str(importlib.resources.files(package).joinpath(name)))


class _CubicFont(TTFont):  # type: ignore[misc] # the library has no types
    """A font whose letters are cubic curves, for the library as if they were not."""

    def __init__(self, name: str, path: Path) -> None:
        # A document's own state of the font is the library's; only the face is ours.
        super().__init__(name, "Vera.ttf", shapable=False)
        self.face = _CubicFace(path)


class _CubicFace(TTFontFace):  # type: ignore[misc]
    """What the library asks of a face, read from a file of cubic curves."""

    def __init__(self, path: Path) -> None:
        pdfmetrics.TypeFace.__init__(self, None)
        file = FontFile(path, lazy=True)
        em = file["head"].unitsPerEm
        self._lock = (
            threading.Lock()
        )  # the file is read where it is needed, and that by one at a time
        self._file = file
        self._name_of = file.getBestCmap()
        widths = file["hmtx"].metrics
        self.filename = str(path)
        self.name = TTFNameBytes(file["name"].getDebugName(6).encode())
        self.subfontNameX = b""
        self.charToGlyph = {code: number for number, code in enumerate(sorted(self._name_of), 1)}
        self.charWidths = {
            code: widths[name][0] * _UNITS / em for code, name in self._name_of.items()
        }
        self.defaultWidth = _UNITS
        head, across, marks = file["head"], file["hhea"], file["OS/2"]
        box = (head.xMin, head.yMin, head.xMax, head.yMax)
        self.bbox = [edge * _UNITS / em for edge in box]
        self.ascent, self.descent = across.ascent * _UNITS / em, across.descent * _UNITS / em
        self.capHeight = marks.sCapHeight * _UNITS / em
        self.italicAngle, self.stemV, self.flags = 0, 80, _SYMBOLIC

    def makeSubset(self, subset: Sequence[int]) -> bytes:  # noqa: N802 - the library's name
        """Return a font file with the characters of some codes, by their places, for the library."""
        return bytes(TTFontFile(io.BytesIO(self._quadratic(set(subset)))).makeSubset(subset))

    def _quadratic(self, codes: Iterable[int]) -> bytes:
        names = {code: self._name_of[code] for code in sorted(codes) if code in self._name_of}
        order = [".notdef", *dict.fromkeys(names.values())]
        with self._lock:
            letters = self._file.getGlyphSet()
            glyphs = {name: _quadratic_glyph(letters, name) for name in order}
            metrics = {name: self._file["hmtx"].metrics[name] for name in order}
            across = self._file["hhea"]
        builder = FontBuilder(self._file["head"].unitsPerEm, isTTF=True)
        builder.updateHead(created=0, modified=0)  # the same document is the same bytes
        builder.font.recalcTimestamp = False
        builder.setupGlyphOrder(order)
        builder.setupCharacterMap(names)
        builder.setupGlyf(glyphs)
        builder.setupHorizontalMetrics(metrics)
        builder.setupHorizontalHeader(ascent=across.ascent, descent=across.descent)
        builder.setupNameTable({"familyName": EASTERN, "styleName": "Regular", "psName": EASTERN})
        builder.setupOS2()
        builder.setupPost()
        made = io.BytesIO()
        builder.save(made)
        return made.getvalue()


def _quadratic_glyph(letters: object, name: str) -> object:
    pen = TTGlyphPen(None)
    letters[name].draw(  # type: ignore[index] # the library has no types
        Cu2QuPen(pen, max_err=_CURVE_ERROR_UNITS, reverse_direction=True)
    )
    return pen.glyph()
