"""Other words by a chat endpoint: good ones are kept, those that lost or changed a target are not, and a broken endpoint breaks nothing."""

from __future__ import annotations

import copy
import json
import threading
import time

import pytest
from chat_stub import chat_stub, slow
from label_folder import arguments, rows_of, write_folder

from data_pipeline.compose.__main__ import main
from data_pipeline.compose.chat_endpoint import MAX_REPLY_BYTES, ChatEndpoint, EndpointError
from data_pipeline.compose.rewriting import Cache, Rewriter
from data_pipeline.compose.rewriting_check import fault
from segearth_r2_jax.errors import UserError


def _row(description: str, answer: str, language: str = "short", **tags) -> dict:
    return {"id": description, "description": description, "answer": answer, "mask": [], "tags": {"language": language, **tags}}


SHORT = _row("Find the red car on the left.", "It is the <p>red car</p>[SEG].")
MULTI = _row("Segment all buildings and the lake.", "These are the <p>buildings</p>[SEG] and the <p>lake</p>[SEG].")
LONG = _row(
    "This aerial image shows roads and buildings. Please segment the largest building and leave out everything else. "
    "It lies at the top of the image.",
    "Sure, the <p>largest building</p>[SEG] is at the top.",
    "long",
)
IMPLICIT = _row("Where can one find shelter from the rain?", "These are the <p>buildings</p>[SEG].")
EMPTY = _row("Where are all ships?", "There is no ship in this image.")


@pytest.mark.parametrize(
    ("row", "instruction", "answer"),
    [
        (SHORT, "Could you mark the red car on the left side?", "Here it is: the <p>red car</p>[SEG]."),
        (SHORT, "red car on the left, please", "The <p>red car</p>[SEG] is what you asked for."),
        (
            MULTI,
            "Outline every one of the buildings together with the lake.",
            "I found the <p>buildings</p>[SEG] and the <p>lake</p>[SEG].",
        ),
        (
            LONG,
            "Roads and buildings can be seen here. Kindly trace the biggest building at the top of the picture and ignore the rest of it.",
            "The <p>largest building</p>[SEG] stands at the top.",
        ),
        (IMPLICIT, "Under what could a person stay dry in a storm?", "Under the <p>buildings</p>[SEG]."),
        (EMPTY, "Can you show me all ships?", "No ship can be seen here."),
    ],
)
def test_words_that_mean_the_same_pass(row, instruction, answer):
    assert fault(row, instruction, answer) is None


@pytest.mark.parametrize(
    ("row", "instruction", "answer", "reason"),
    [
        (SHORT, SHORT["description"], "It is the red car.", "number of [SEG]"),
        (SHORT, SHORT["description"], "It is the <p>red car</p>[SEG] [SEG].", "number of [SEG]"),
        (SHORT, SHORT["description"], "It is the <p>red truck</p>[SEG].", "nouns"),
        (SHORT, SHORT["description"], "It is the <p>car</p>[SEG].", "nouns"),
        (SHORT, SHORT["description"], "It is the [SEG].", "nouns"),
        (MULTI, MULTI["description"], "These are the <p>lake</p>[SEG] and the <p>buildings</p>[SEG].", "order"),
        (MULTI, "Segment all buildings.", MULTI["answer"], "categories of the instruction"),
        (MULTI, "Segment all buildings, the lake and the river.", MULTI["answer"], "categories of the instruction"),
        (MULTI, "Segment all buildings and all lakes.", MULTI["answer"], "categories of the instruction"),
        (SHORT, "Find the red car.", SHORT["answer"], "places"),
        (SHORT, "Find the car on the left.", SHORT["answer"], "places"),
        (SHORT, "Find the red car on the right.", SHORT["answer"], "places"),
        (SHORT, "Find all but the red car on the left.", SHORT["answer"], "places"),
        (SHORT, "Find the two red car on the left.", SHORT["answer"], "places"),
        (SHORT, "Find the red vehicle on the left.", SHORT["answer"], "categories of the instruction"),
        (LONG, LONG["description"].replace("at the top", "at the bottom"), LONG["answer"], "places"),
        (LONG, LONG["description"], "Sure, the <p>largest building</p>[SEG] is on the left.", "answer"),
        (LONG, "Segment the largest building at the top.", LONG["answer"], "categories of the instruction"),
        (LONG, "Roads, buildings: the largest building, top.", LONG["answer"], "length"),
        (SHORT, "There is a red car on the left. I would like to have it outlined. Can you do that?", SHORT["answer"], "length"),
        (IMPLICIT, "Where are the buildings?", IMPLICIT["answer"], "categories of the instruction"),
        (EMPTY, EMPTY["description"], "Here are the ships.", "answer"),
        (SHORT, "Find the <p>red car</p> on the left.", SHORT["answer"], "marks"),
        (SHORT, "Find the red car\non the left.", SHORT["answer"], "plain text"),
        (SHORT, "", SHORT["answer"], "empty"),
        (SHORT, "red car left " * 100, SHORT["answer"], "too long"),
        (SHORT, None, SHORT["answer"], "no instruction"),
        (SHORT, 3, SHORT["answer"], "no instruction"),
    ],
)
def test_words_that_changed_the_target_do_not_pass(row, instruction, answer, reason):
    assert reason in fault(row, instruction, answer)


def test_a_category_of_the_data_set_is_known_to_the_check():
    row = _row("Find all buildings.", "These are the <p>buildings</p>[SEG].")
    assert fault(row, "Find all buildings near the kiosk.", row["answer"]) is None
    assert "categories" in fault(row, "Find all buildings near the kiosk.", row["answer"], ["kiosk"])


def _good(question, number=0) -> str:
    return json.dumps({"instruction": "Please show me: " + question["instruction"].lower(), "answer": "Yes. " + question["answer"]})


def _endpoint(url, **options) -> ChatEndpoint:
    return ChatEndpoint(url, "m", timeout=0.5, pause=0.01, sleep=lambda seconds: None, **options)


def _rewriter(url, tmp_path, **options) -> Rewriter:
    return Rewriter(_endpoint(url), Cache(tmp_path / "cache.jsonl"), progress=False, **options)


def test_good_words_replace_the_grammars_which_are_kept_beside_them(tmp_path):
    rows = [copy.deepcopy(row) for row in (SHORT, MULTI, IMPLICIT)]
    with chat_stub(_good) as server:
        counts = _rewriter(server.url, tmp_path)(rows)
    assert counts == {"model": "m", "rewritten": 3, "from_cache": 0, "kept": {}}
    for row, before in zip(rows, (SHORT, MULTI, IMPLICIT), strict=True):
        assert row["description"].startswith("Please show me: ")
        assert row["grammar"] == {"description": before["description"], "answer": before["answer"]}
        assert {key: row[key] for key in ("id", "mask", "tags")} == {key: before[key] for key in ("id", "mask", "tags")}


def test_a_code_fence_around_the_reply_is_read(tmp_path):
    rows = [copy.deepcopy(SHORT)]
    with chat_stub(lambda question, number: f"```json\n{_good(question)}\n```") as server:
        assert _rewriter(server.url, tmp_path)(rows)["rewritten"] == 1


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda q, n: json.dumps({"instruction": q["instruction"], "answer": "Here."}), "number of [SEG]"),
        (
            lambda q, n: json.dumps({"instruction": q["instruction"], "answer": q["answer"].replace("car", "bus")}),
            "nouns of the answer or their order",
        ),
        (lambda q, n: json.dumps({"instruction": q["instruction"], "answer": q["answer"]}), "unchanged"),
        (lambda q, n: "Sure! Find the red car.", "reply is not JSON"),
        (lambda q, n: '["instruction"]', "reply is not JSON"),
        (lambda q, n: b"<html>gateway</html>", "endpoint: reply is not that of a chat endpoint"),
        (lambda q, n: b'{"choices": []}', "endpoint: reply is not that of a chat endpoint"),
        (lambda q, n: b'{"choices": [{"message": {"content": null}}]}', "endpoint: reply without text"),
        (lambda q, n: b"x" * (MAX_REPLY_BYTES + 1), "endpoint: huge reply"),
        (lambda q, n: 500, "endpoint: status 500"),
        (lambda q, n: 429, "endpoint: status 429"),
        (slow(1.0), "endpoint: timeout"),
    ],
)
def test_whatever_fails_keeps_the_grammars_words_and_is_counted(answer, reason, tmp_path):
    rows = [copy.deepcopy(SHORT)]
    with chat_stub(answer) as server:
        endpoint = _endpoint(server.url, attempts=2)
        counts = Rewriter(endpoint, Cache(tmp_path / "cache.jsonl"), progress=False)(rows)
    assert rows == [SHORT]
    assert counts["kept"] == {reason: 1}
    assert counts["rewritten"] == 0


def test_a_passing_failure_is_asked_again_after_longer_and_longer_pauses():
    pauses = []
    with chat_stub(lambda question, number: 503 if number < 4 else "here") as server:
        endpoint = ChatEndpoint(server.url, "m", timeout=5, pause=0.5, sleep=pauses.append)
        assert endpoint.ask("be kind", json.dumps({})) == "here"
        assert len(server.asked) == 4
    assert pauses == [0.5, 1.0, 2.0]


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404])
def test_what_asking_again_cannot_mend_ends_the_run_with_one_line(status, tmp_path):
    with chat_stub(lambda question, number: status) as server, pytest.raises(UserError, match=str(status)) as error:
        _rewriter(server.url, tmp_path)([copy.deepcopy(SHORT)])
    assert len(server.asked) == 1
    assert "\n" not in str(error.value)


def test_no_endpoint_at_all_ends_the_run(tmp_path):
    with chat_stub(_good) as server:
        url = server.url
    rows = [_row(f"Find the car {number}.", "It is the <p>car</p>[SEG].") for number in range(30)]
    with pytest.raises(UserError, match="in a row failed"):
        _rewriter(url, tmp_path)(rows)
    with pytest.raises(EndpointError, match="no connection"):
        _endpoint(url, attempts=1).ask("", "{}")


def test_the_key_is_sent_and_written_nowhere(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MY_KEY", "s3cret")
    folder = write_folder(tmp_path / "labels", 2)
    with chat_stub(_good) as server:
        more = ("--rewrite-endpoint", server.url, "--rewrite-model", "m", "--rewrite-key-env", "MY_KEY")
        assert main(arguments(folder, tmp_path / "set", *more)) == 0
        assert {headers["Authorization"] for headers in server.headers_seen} == {"Bearer s3cret"}
    assert "s3cret" not in capsys.readouterr().out
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"s3cret" not in path.read_bytes(), path


def test_a_second_run_asks_nothing_and_gives_the_same_set(tmp_path):
    folder = write_folder(tmp_path / "labels", 3)
    with chat_stub(_good) as server:
        more = ("--rewrite-endpoint", server.url, "--rewrite-model", "m", "--rewrite-cache", str(tmp_path / "cache.jsonl"))
        assert main(arguments(folder, tmp_path / "one", *more)) == 0
        asked = len(server.asked)
        assert main(arguments(folder, tmp_path / "two", *more)) == 0
        assert len(server.asked) == asked > 10
    assert rows_of(tmp_path / "one", "train") == rows_of(tmp_path / "two", "train")
    summaries = [json.loads((tmp_path / name / "compose.json").read_text())["rewriting"] for name in ("one", "two")]
    assert [summary["from_cache"] for summary in summaries] == [0, asked]
    assert summaries[0]["rewritten"] == summaries[1]["rewritten"] > 10
    assert any("grammar" in row for row in rows_of(tmp_path / "one", "train"))


def test_a_cache_that_was_cut_off_is_read_as_far_as_it_goes(tmp_path):
    cache = Cache(tmp_path / "cache.jsonl")
    cache.put("a", "one")
    cache.put("b", "two")
    data = cache.path.read_bytes()
    cache.path.write_bytes(data[:-5])
    again = Cache(cache.path)
    assert (again.get("a"), again.get("b")) == ("one", None)
    again.put("b", "three")
    assert Cache(cache.path).get("b") == "three"
    (tmp_path / "notes.txt").write_text("my notes\n")
    with pytest.raises(UserError, match="not a cache"):
        Cache(tmp_path / "notes.txt")


def test_questions_are_asked_at_the_same_time_and_their_order_is_kept(tmp_path):
    rows = [_row(f"Find the {word} car.", f"It is the <p>{word} car</p>[SEG].") for word in ("red", "blue", "green", "white")]
    barrier = threading.Barrier(4)

    def answer(question, number):
        barrier.wait(timeout=5)
        time.sleep(0.02 * number)
        return _good(question)

    with chat_stub(answer) as server:
        endpoint = ChatEndpoint(server.url, "m", timeout=10)
        Rewriter(endpoint, Cache(tmp_path / "cache.jsonl"), concurrency=4, progress=False)(rows)
    assert [row["description"].split()[-2] for row in rows] == ["red", "blue", "green", "white"]


def test_nothing_is_asked_unless_an_endpoint_is_given(tmp_path):
    folder = write_folder(tmp_path / "labels", 2)
    assert main(arguments(folder, tmp_path / "set")) == 0
    assert "rewriting" not in json.loads((tmp_path / "set" / "compose.json").read_text())
    assert not list(tmp_path.glob("*.jsonl"))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--rewrite-model", "m"), "--rewrite-endpoint"),
        (("--rewrite-endpoint", "http://127.0.0.1:1/v1"), "--rewrite-model"),
        (("--rewrite-endpoint", "file:///etc/passwd", "--rewrite-model", "m"), "--rewrite-endpoint"),
        (("--rewrite-endpoint", "http://127.0.0.1:1", "--rewrite-model", "m", "--rewrite-key-env", "NOT_THERE"), "NOT_THERE"),
        (("--rewrite-endpoint", "http://127.0.0.1:1", "--rewrite-model", "m", "--rewrite-concurrency", "0"), "--rewrite-concurrency"),
    ],
)
def test_options_that_do_not_fit_are_one_line(more, said, tmp_path, capsys):
    folder = write_folder(tmp_path / "labels", 1)
    assert main(arguments(folder, tmp_path / "set", *more)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said in error
    assert not (tmp_path / "set").exists()
