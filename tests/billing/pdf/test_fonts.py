"""A name in any of the market's scripts is on the page, and the letters are in the file."""

import datetime as dt
import io

import pytest
import time_machine
from fontTools.pens.boundsPen import BoundsPen
from fontTools.ttLib import TTFont
from pypdf import PdfReader
from pypdf.generic import DictionaryObject
from reportlab.pdfbase import pdfmetrics

from billing.pdf import fonts, layout

NAMES = {
    "Latin": "Łódź Ștefănescu Đặng Văn Quỳnh",
    "Greek": "Αθήνα Ἀθῆναι ΰπόλοιπο",
    "Cyrillic": "Пример Київ Љубљана Қазақстан",
    "Japanese": "株式会社パーセプトロン",
    "Korean": "한국과학기술원",
    "Simplified": "北京智算科技有限公司",
    "Traditional": "臺灣國際運算中心",
}


def page_of(*lines: str) -> bytes:
    story = [layout.text(line, bold=bold) for line in lines for bold in (False, True)]
    return layout.build(story, title="T", subject="S", footer="F")


def _fonts(resources: DictionaryObject) -> DictionaryObject:
    found = resources["/Font"].get_object()
    assert isinstance(found, DictionaryObject)
    return found


def embedded(content: bytes) -> list[tuple[str, TTFont]]:
    """Return the fonts of the first page, each with the name by which the page calls it."""
    resources = PdfReader(io.BytesIO(content)).pages[0]["/Resources"]
    assert isinstance(resources, DictionaryObject)
    found = []
    for name, font in _fonts(resources).items():
        descriptor = font.get_object().get("/FontDescriptor")
        if descriptor is not None:
            data = descriptor.get_object()["/FontFile2"].get_object().get_data()
            found.append((name, TTFont(io.BytesIO(data))))
    return found


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_name_can_be_read_from_the_file_and_looked_at(name: str) -> None:
    content = page_of(name)
    assert PdfReader(io.BytesIO(content)).pages[0].extract_text().split("\n")[:2] == [name, name]
    drawn = [
        glyph
        for _, font in embedded(content)
        for glyph in font.getGlyphOrder()
        if font["glyf"][glyph].numberOfContours
    ]
    letters = {letter for letter in name if letter != " "}
    # Each letter has an outline of its own in a font of the file; an accent may be one that they share.
    assert len(drawn) >= len(letters)


def test_every_font_that_a_page_calls_is_in_the_file() -> None:
    content = page_of(*NAMES.values())
    resources = PdfReader(io.BytesIO(content)).pages[0]["/Resources"]
    assert isinstance(resources, DictionaryObject)
    # Helvetica is the library's own first state of a page; nothing is drawn with it.
    called = {
        name for name, font in _fonts(resources).items() if "+" in font.get_object()["/BaseFont"]
    }
    assert {name for name, _ in embedded(content)} == called
    assert len(called) >= 4


def test_only_the_letters_that_are_drawn_are_in_the_file() -> None:
    assert len(page_of(NAMES["Japanese"])) < 60_000


def test_the_same_words_are_the_same_bytes_at_any_time() -> None:
    with time_machine.travel(dt.datetime(2026, 11, 30, tzinfo=dt.UTC)):
        first = page_of(*NAMES.values())
    with time_machine.travel(dt.datetime(2027, 3, 1, tzinfo=dt.UTC)):
        assert page_of(*NAMES.values()) == first


@pytest.mark.parametrize("letter", ["株", "한", "国", "臺", "々"])
def test_a_letter_of_cubic_curves_keeps_its_shape_and_its_width(letter: str) -> None:
    fonts.known()
    face = pdfmetrics.getFont(fonts.EASTERN).face
    source = TTFont(face.filename)
    made = TTFont(io.BytesIO(face.makeSubset([0, ord(letter)])))
    name = made.getGlyphOrder()[1]
    kept = BoundsPen(made.getGlyphSet())
    made.getGlyphSet()[name].draw(kept)
    drawn = BoundsPen(source.getGlyphSet())
    original = source.getBestCmap()[ord(letter)]
    source.getGlyphSet()[original].draw(drawn)
    assert kept.bounds == pytest.approx(drawn.bounds, abs=2)
    assert made["hmtx"].metrics[name][0] == source["hmtx"].metrics[original][0]
    assert face.getCharWidth(ord(letter)) == source["hmtx"].metrics[original][0]


def test_a_word_is_in_one_font_and_what_no_font_has_is_marked() -> None:
    assert fonts.marked_up("AG Łódź") == f'AG <font name="{fonts.WIDE}">Łódź</font>'
    assert fonts.marked_up("<b> قط 1") == "&lt;b&gt; ?? 1"
