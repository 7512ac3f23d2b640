"""A person reviews a data set in a browser, and the build does what was decided."""

from __future__ import annotations

import json
import re

import pytest
from tanks_example import ROWS, change_rows
from webdriver import ESCAPE, LEFT, RIGHT, wait_for

from data_pipeline import build_shards
from data_pipeline.review import write_review
from data_pipeline.review_decisions import Decision, load_decisions
from data_pipeline.shard_folder import ShardedRecords


@pytest.fixture
def opened(browser, tanks, tmp_path):
    """The browser with the page of a data set open, which no test has touched before."""
    assert write_review(tanks, tmp_path / "page") == ROWS
    browser.resize(1200, 900)
    browser.open(tmp_path / "page/index.html")

    def forgotten() -> bool:
        # A busy browser may answer the new page before it has cleared what the last one kept.
        browser.run("localStorage.clear()")
        browser.reload()
        return browser.text("#count").startswith("0 of")

    wait_for(forgotten)
    browser.complaints(), browser.addresses()
    return browser


def downloaded(browser, folder):
    folder.mkdir()
    browser.download_to(folder)
    browser.click("#download")
    path = folder / "review.json"
    wait_for(lambda: path.exists() and path.stat().st_size)
    return path


def test_a_row_that_is_rejected_by_clicking_is_not_in_the_shards(opened, tanks, tmp_path):
    ids = [f"row{number}" for number in range(ROWS)]
    opened.click("#accept")
    assert ids[1] in opened.text("#place"), "a decision leads on to the next row"
    opened.click("#note")
    opened.type("#note", "the wrong tank")
    opened.click("#reject")
    assert opened.text("#count") == "2 of 16 decided, 1 rejected"
    assert opened.complaints() == []

    review = downloaded(opened, tmp_path / "downloads")
    assert load_decisions(review) == {ids[0]: Decision(True, ""), ids[1]: Decision(False, "the wrong tank")}
    review.rename(tanks / "review.json")
    build = ["--source", "lasers", "--input", str(tanks), "--split", "train", "--output", str(tmp_path / "shards")]
    assert build_shards.main(build) == 0
    records = ShardedRecords(tmp_path / "shards")
    assert [records[number].record_id for number in range(len(records))] == [ids[0], *ids[2:]]
    report = json.loads((tmp_path / "shards/report.json").read_text())
    assert [entry["reason"] for entry in report["rejected"]] == ["rejected in review: the wrong tank"]
    assert ids[1] in report["rejected"][0]["name"]

    opened.open(tmp_path / "shards/report.html")
    assert opened.count("details[open] td") == 3
    assert "the wrong tank" in opened.text("details")
    assert opened.complaints() == []


def test_keys_do_what_buttons_do(opened):
    opened.press("a")
    opened.press("r")
    opened.press(RIGHT)
    opened.press("R")
    assert opened.text("#count") == "3 of 16 decided, 2 rejected"
    assert opened.text("#place").startswith("row 5 of 16")
    opened.press(LEFT)
    assert opened.run("return document.getElementById('reject').ariaPressed") == "true"
    opened.press("u")
    assert opened.text("#count") == "2 of 16 decided, 1 rejected"
    opened.press("n")
    for key in "rar":
        opened.press(key)
    opened.press(ESCAPE)
    assert opened.run("return document.getElementById('note').value") == "rar"
    assert opened.text("#count") == "2 of 16 decided, 1 rejected", "letters of a note decide nothing"
    opened.click("#strip button:nth-child(4)")
    opened.press("m")
    assert opened.count(".layer, .stack .badge") == 0
    opened.press("m")
    assert opened.count(".layer") > 0


def test_decisions_survive_closing_and_the_filter_finds_what_is_left(opened):
    for key in "aaaara":
        opened.press(key)
    opened.reload()
    assert opened.text("#count") == "6 of 16 decided, 1 rejected"
    assert opened.text("#place").startswith("row 7 of 16"), "it goes on where it was left"
    opened.run("const f = document.getElementById('filter'); f.value = 'undecided'; f.dispatchEvent(new Event('change'))")
    assert opened.count("#strip button") == 10
    for _ in range(10):
        opened.press("a")
    assert opened.count("#review") == 0
    assert "Every row is decided" in opened.text("#message")
    opened.run("const f = document.getElementById('filter'); f.value = 'reject'; f.dispatchEvent(new Event('change'))")
    assert opened.text("#place").startswith("row 5 of 16")


def test_an_exported_file_is_imported_again(opened, tmp_path):
    opened.press("r")
    opened.press("a")
    review = downloaded(opened, tmp_path / "downloads")
    content = json.loads(review.read_text())
    content["decisions"]["a row of another page"] = {"decision": "reject", "note": "kept"}
    review.write_text(json.dumps(content))
    opened.run("localStorage.clear()")
    opened.reload()
    assert opened.text("#count") == "0 of 16 decided, 0 rejected"
    opened.type("#import", str(review))
    wait_for(lambda: "3 decisions read" in opened.text("#message"))
    assert opened.text("#count") == "2 of 16 decided, 1 rejected"
    again = downloaded(opened, tmp_path / "again")
    assert json.loads(again.read_text()) == content

    for damage in ("{", '{"format": "other"}', json.dumps({**content, "version": 2}), review.read_text().replace('"reject"', '"maybe"')):
        review.write_text(damage)
        opened.type("#import", str(review))
        wait_for(lambda: "was not read" in opened.text("#message"))
        opened.run("document.getElementById('message').textContent = ''")
        assert opened.text("#count") == "2 of 16 decided, 1 rejected"


def test_the_page_starts_with_the_decisions_of_the_folder(browser, tanks, tmp_path):
    decisions = {"row4": {"decision": "reject", "note": "blurred"}}
    (tanks / "review.json").write_text(json.dumps({"format": "segearth-r2-review", "version": 1, "decisions": decisions}))
    write_review(tanks, tmp_path / "page")
    browser.open(tmp_path / "page/index.html")
    browser.run("localStorage.clear()")
    browser.reload()
    assert browser.text("#count") == "1 of 16 decided, 1 rejected"
    browser.click("#strip button:nth-child(5)")
    assert browser.run("return document.getElementById('note').value") == "blurred"


def test_words_of_the_data_are_never_run(browser, tanks, tmp_path):
    attack = "</script><script>document.title = 'run'</script><img src=x onerror=\"document.title='run'\">&lt;b&gt; ''"

    def change(number, row):
        row["description"] = attack
        row["answer"] = re.sub(r"<p>.*?</p>", f"<p>{attack}</p>", row["answer"]) + attack
        row["id"] = "__proto__" if number == 0 else f"{attack}{number}"
        row["tags"]["category"] = attack

    change_rows(tanks, change)
    write_review(tanks, tmp_path / "page")
    browser.open(tmp_path / "page/index.html")
    browser.run("localStorage.clear()")
    browser.reload()
    browser.complaints()
    assert browser.text("#instruction") == attack
    assert attack in browser.text("#answer")
    browser.press("r")
    browser.press("a")
    assert "</script>" in browser.text("#place")
    assert browser.run("return document.title").startswith("Review of")
    assert browser.complaints() == []
    decisions = json.loads(downloaded(browser, tmp_path / "downloads").read_text())["decisions"]
    assert [(key, value["decision"]) for key, value in decisions.items()] == [("__proto__", "reject"), (f"{attack}1", "accept")]


def test_nothing_is_asked_for_elsewhere_and_it_fits_on_a_phone(opened, tmp_path):
    opened.resize(360, 740)
    for _ in range(4):
        opened.press("a")
    wide = opened.run("return document.documentElement.scrollWidth")
    assert wide <= 360
    shown = opened.run("return document.querySelector('#stack img').getBoundingClientRect().width")
    assert 300 <= shown <= 360
    asked, folder = opened.addresses(), (tmp_path / "page").as_uri()
    assert asked
    assert [address for address in asked if not address.startswith(f"{folder}/")] == []
