"""Pages are whole, need nothing from elsewhere and never take words of the data for markup; plots draw what was counted."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import io
import json
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from data_pipeline.atomic import check_new_folder, whole_folder
from data_pipeline.pages.markup import Markup, element, page, table, write_page
from data_pipeline.pages.pictures import make_jpeg, make_picture
from data_pipeline.pages.plots import bar_chart, histogram
from data_pipeline.pages.report_page import kind_of_reason, report_page
from data_pipeline.pages.samples import Piece, answer_pieces
from segearth_r2_jax.errors import UserError

ATTACKS = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    '" onmouseover="alert(1)',
    "' onmouseover='alert(1)",
    "<img src=x onerror=alert(1)>",
    "&lt;b&gt; &amp;amp;",
    "<!--",
    "]]>",
    "</style><style>*{display:none}</style>",
    "\u202e\x00\ufffe",
]


class Reader(html.parser.HTMLParser):
    """The elements with their attributes, and the text of a page as a browser would see them."""

    def __init__(self, content):
        super().__init__()
        self.elements, self.texts = [], []
        self.feed(content)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.texts.append(data)


@pytest.mark.parametrize("attack", ATTACKS)
def test_words_become_text_and_attributes_and_nothing_else(attack):
    read = Reader(element("p", attack, element("b", attack), title=attack, class_="note", data_id=attack))
    assert [tag for tag, _ in read.elements] == ["p", "b"]
    assert read.elements[0][1] == {"title": attack, "class": "note", "data-id": attack}
    assert "".join(read.texts) == attack * 2


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_page_keeps_its_elements_whatever_the_words(attack):
    def made(words):
        chart = bar_chart([(words, 3)], words)
        return page(words, table([words], [[words]]), chart, subtitle=words, scripts=["masks.js"], data={words: words})

    read, plain = Reader(made(attack)), Reader(made("words"))
    assert [tag for tag, _ in read.elements] == [tag for tag, _ in plain.elements]
    assert [set(attributes) for _, attributes in read.elements] == [set(attributes) for _, attributes in plain.elements]
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', made(attack), re.DOTALL)[1]
    assert json.loads(data) == {attack: attack}


def test_only_the_scripts_of_the_page_may_run_and_nothing_may_be_loaded():
    content = page("title", element("p", "words"), scripts=["masks.js", "inspect.js"])
    policy = next(a["content"] for tag, a in Reader(content).elements if a.get("http-equiv") == "Content-Security-Policy")
    script = re.search(r"<script>(.*)</script>", content, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy
    assert not re.findall(r"""(?:src|href)=["']?http|url\(|@import""", content)


def test_markup_is_kept_and_none_is_left_out():
    assert element("div", None, Markup("<br>"), 3, hidden=True, title=None, lang=False) == "<div hidden><br>3</div>"


def test_a_page_appears_whole_whatever_a_file_is_called(tmp_path):
    write_page(tmp_path / "a.html", page("bytes of no text: \udcff", element("p", "höhe")))
    assert "höhe" in (tmp_path / "a.html").read_text(encoding="utf-8")
    with pytest.raises(UserError, match=r"gone/a\.html: cannot be written"):
        write_page(tmp_path / "gone/a.html", "x")
    assert [path.name for path in tmp_path.iterdir()] == ["a.html"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    def fails():
        with whole_folder(tmp_path / "page") as folder:
            (folder / "half").write_text("x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert list(tmp_path.iterdir()) == []
    with whole_folder(tmp_path / "page") as folder:
        (folder / "all").write_text("x")
        assert not (tmp_path / "page").exists()
    assert [path.name for path in (tmp_path / "page").iterdir()] == ["all"]
    assert [path.name for path in tmp_path.iterdir()] == ["page"]
    with pytest.raises(UserError, match="is not empty"):
        check_new_folder(tmp_path / "page")
    with pytest.raises(UserError, match="is a file"):
        check_new_folder(tmp_path / "page/all")


def _bars(svg):
    return list(ElementTree.fromstring(svg).iter("rect"))


def test_bars_are_as_long_as_their_counts():
    svg = bar_chart([("a", 40), ("b", 10), ("c", 0)], "records")
    widths = [float(bar.get("width")) for bar in _bars(svg)]
    assert widths[0] == pytest.approx(4 * widths[1], abs=0.2)
    assert widths[2] == 0
    assert [text.text for text in ElementTree.fromstring(svg).iter("text")] == ["a", "40 · 80 %", "b", "10 · 20 %", "c", "0 · 0 %"]


def test_many_bars_become_few_and_none_is_lost():
    svg = bar_chart([(f"class {number}", 100 - number) for number in range(60)], "records", limit=5)
    texts = [text.text for text in ElementTree.fromstring(svg).iter("text")]
    assert texts[::2] == ["class 0", "class 1", "class 2", "class 3", "56 others"]
    counts = [int(text.split(" ·")[0].replace(",", "")) for text in texts[1::2]]
    assert sum(counts) == sum(100 - number for number in range(60))
    assert _bars(bar_chart([], "records")) == []


def test_a_histogram_has_its_bins_where_the_axis_says():
    svg = histogram([0, 10, 20, 30], [5, 0, 10], "words")
    low, empty, high = _bars(svg)
    assert float(empty.get("height")) == 0
    assert float(high.get("height")) == pytest.approx(2 * float(low.get("height")), abs=0.2)
    ticks = {text.text: float(text.get("x")) for text in ElementTree.fromstring(svg).iter("text") if text.get("class") == "middle"}
    assert float(high.get("x")) == pytest.approx(ticks["20"], abs=1)
    assert float(low.get("x")) == pytest.approx(ticks["0"], abs=1)


def test_a_logarithmic_axis_has_equal_steps_per_factor_of_ten():
    svg = histogram([0.001, 0.01, 0.1, 1], [1, 1, 1], "share", log=True)
    lefts = [float(bar.get("x")) for bar in _bars(svg)]
    assert lefts[1] - lefts[0] == pytest.approx(lefts[2] - lefts[1], abs=0.2)
    with pytest.raises(ValueError, match="2 edges and 2 counts"):
        histogram([0, 1], [1, 1], "words")


@pytest.mark.parametrize("count", [1, 3, 7, 54, 99, 100, 101, 12345])
def test_the_highest_bar_fits_and_fills_most_of_the_plot(count):
    height = float(_bars(histogram([0, 1, 2], [count, 1], "words"))[0].get("height"))
    assert 75 <= height <= 152


@pytest.mark.parametrize("shape", [(1, 1), (7, 3000), (3000, 7), (64, 64), (1500, 1100)])
def test_pictures_fit_their_side_and_masks_lie_on_them(shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    mask = np.zeros(shape, np.uint8)
    mask[shape[0] // 2, shape[1] // 2] = 1
    picture = make_picture(make_jpeg(image, 440, 40_000), [mask, np.zeros(shape, np.uint8)], 440)
    assert max(picture.jpeg.width, picture.jpeg.height) == min(440, max(shape))
    with Image.open(io.BytesIO(picture.jpeg.content)) as shown:
        assert shown.size == (picture.jpeg.width, picture.jpeg.height)
    with Image.open(io.BytesIO(picture.layers[0].png)) as layer:
        alpha = np.asarray(layer.convert("RGBA"))[..., 3]
    assert (alpha > 0).any(), "a target of one pixel is seen"
    assert all(0 <= share <= 1 for share in picture.places[0])
    assert picture.places[1] is None


def test_many_masks_share_layers_and_none_is_lost():
    image = np.zeros((100, 100, 3), np.uint8)
    masks = [np.eye(100, k=number, dtype=np.uint8) for number in range(40)]
    picture = make_picture(make_jpeg(image, 440, 40_000), masks, 440)
    assert len(picture.layers) == 7
    assert sorted(number for layer in picture.layers for number in layer.numbers) == list(range(40))


@pytest.mark.parametrize(
    ("answer", "pieces"),
    [
        ("It is <p>the lake</p>[SEG].", [("It is ", None), ("the lake", 0), (".", None)]),
        ("<p>a</p> [SEG] and <p>b</p>[SEG]", [("a", 0), (" and ", None), ("b", 1)]),
        ("<p>a</p> beside <p>b</p>[SEG]", [("a beside ", None), ("b", 0)]),
        ("The result is [SEG], [SEG].", [("The result is ", None), ("", 0), (", ", None), ("", 1), (".", None)]),
        ("There is none.", [("There is none.", None)]),
        ("", []),
        ("[SEG]", [("", 0)]),
        ("<p>a <b>x</b></p>[SEG] </p>", [("a <b>x</b>", 0), (" ", None)]),
    ],
)
def test_an_answer_pairs_phrases_with_masks(answer, pieces):
    assert answer_pieces(answer) == [Piece(*piece) for piece in pieces]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("the answer has 2 [SEG], but there are 1 masks", "the answer has 12 [SEG], but there are 3 masks"),
        ("image train/images/a b.png does not exist", "image train/images/a c.png does not exist"),
        ("image_name '../x' leaves the folder /d", "image_name '../../y z' leaves the folder /e"),
        ("rejected in review: too dark", "rejected in review: the wrong tank"),
        ("mask 0 is 5 x 4, its image 4 x 5 (height x width)", "mask 3 is 50 x 4, its image 7 x 1 (height x width)"),
    ],
)
def test_reasons_that_differ_in_details_are_one_kind(first, second):
    assert kind_of_reason(first) == kind_of_reason(second)


def test_reasons_of_different_kinds_stay_apart():
    reasons = [
        "description is empty",
        "has no mask; training needs one",
        "an earlier row of the file has the same id",
        "rejected in review",
    ]
    assert len({kind_of_reason(reason) for reason in reasons}) == len(reasons)


def test_the_report_lists_every_kind_with_its_count_and_escapes_reasons():
    report = {"title": "T", "source": "s", "home": "h", "licence": "l", "command": "", "splits": {}, "notes": ["a <note>"]}
    rejected = [{"split": "train", "name": f"f: row {n}", "reason": f"has {n} <masks>"} for n in range(130)]
    rejected.append({"split": "test", "name": "f: row 9", "reason": "<script>alert(1)</script>"})
    content = report_page({**report, "rejected": rejected})
    read = Reader(content)
    assert [tag for tag, _ in read.elements].count("details") == 2
    assert [tag for tag, _ in read.elements].count("script") == 0
    texts = "".join(read.texts)
    assert "130has … <masks>" in texts
    assert "The first 100; report.json has all of them." in texts
    assert "<script>alert(1)</script>" in texts
    assert "None: every annotation can be used." in "".join(Reader(report_page({**report, "rejected": []})).texts)
