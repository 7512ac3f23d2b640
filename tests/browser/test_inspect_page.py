"""The page of a data set in a browser: masks, filters, words that are not run."""

from __future__ import annotations

import pytest
from tanks_example import ROWS, change_rows

from data_pipeline.inspect import inspect_source


@pytest.fixture
def opened(browser, tanks, tmp_path):
    browser.open(inspect_source("lasers", tanks, "train", tmp_path / "page"))
    browser.resize(1200, 900)
    return browser


def test_all_is_shown_and_nothing_is_asked_for_elsewhere(browser, tanks, tmp_path):
    browser.complaints(), browser.addresses()
    page = inspect_source("lasers", tanks, "train", tmp_path / "page")
    browser.open(page)
    assert browser.count(".sample") == ROWS
    assert browser.run("return [...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert browser.count(".plot") == 9
    assert browser.complaints() == []
    assert browser.addresses() == {page.as_uri(), "data:image/jpeg;base64", "data:image/png;base64"}


def test_filters_leave_what_fits(opened):
    assert opened.text("button[data-value=implicit]") == "implicit 6"
    assert opened.run("return document.querySelector('button[data-value=part]').disabled")
    opened.click("button[data-value=implicit]")
    assert opened.count(".sample") == opened.count(".sample[data-reasoning=implicit]") == 6
    assert opened.text("#count") == "6 of 16 shown"
    opened.click("button[data-value=explicit]")
    assert opened.count(".sample") == 16, "values of one dimension add up"
    opened.click("button[data-value=explicit]")
    opened.click("button[data-value=short]")
    assert opened.count(".sample") == opened.count(".sample[data-reasoning=implicit][data-language=short]") == 3, "dimensions narrow down"
    opened.click("button[data-value=multi]")
    opened.click("button[data-value=single]")
    opened.click("button[data-value=long]")
    opened.click("button[data-value=short]")
    assert opened.text("#count") == "3 of 16 shown"


def opacities(browser, selector):
    """How much is seen of each element, when all that moves has come to rest."""
    script = """
        document.getAnimations().forEach(animation => animation.finish());
        return [...document.querySelectorAll(arguments[0])].map(found => Number(getComputedStyle(found).opacity));
    """
    return browser.run(script, selector)


def test_a_phrase_that_is_pointed_at_shows_its_mask_alone(opened):
    sample = ".sample[data-id=row3]"
    opened.run("document.querySelector(arguments[0]).scrollIntoView()", sample)
    opened.point_at(f"{sample} mark[data-mask='1']")
    shown = opacities(opened, f"{sample} .layer")
    assert [opacity > 0.5 for opacity in shown] == [False, True, False]
    opened.point_at("h1")
    assert set(opacities(opened, f"{sample} .layer")) == {1}


def test_masks_can_be_hidden(opened):
    assert opened.count(".layer") > 0
    opened.click("#masks")
    assert opened.count(".layer, .stack .badge") == 0
    opened.click("#masks")
    assert opened.count(".layer") > 0


def test_it_can_be_used_without_a_mouse_and_fits_on_a_phone(opened):
    opened.resize(360, 740)
    assert opened.run("return document.documentElement.scrollWidth") <= 360
    opened.run("document.querySelector('button[data-value=implicit]').focus()")
    opened.press(" ")
    assert opened.count(".sample") == 6


def test_words_of_the_data_are_never_run(browser, tanks, tmp_path):
    attack = "</p><script>document.title = 'run'</script><img src=x onerror=\"document.title='run'\">"

    def change(number, row):
        row.update(description=attack, id=f"{number}{attack}")
        row["tags"]["category"] = attack
        if number == 3:
            row["image_name"] = attack.replace("/", "")

    change_rows(tanks, change)
    browser.complaints()
    browser.open(inspect_source("lasers", tanks, "train", tmp_path / "page"))
    assert browser.text(".instruction") == attack
    ids = browser.run("return [...document.querySelectorAll('.sample')].map(sample => sample.dataset.id)")
    assert set(ids) == {f"{number}{attack}" for number in range(ROWS) if number != 3}
    assert browser.text(".origin").startswith(f"{ids[0]} · ")
    assert browser.count("td") == 2, "the row whose image does not exist is listed"
    assert browser.run("return document.title") == "LaSeRS · train"
    assert browser.complaints() == []
