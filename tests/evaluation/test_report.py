"""The report holds the figures, the rule and the floor; the table shows the same in aligned columns."""

import json

import numpy as np

from segearth_r2_jax.evaluation.metrics import Score, compare
from segearth_r2_jax.evaluation.report import format_table, make_report

ON = np.ones((2, 2), bool)
HALF = np.array([[True, True], [False, False]])


def _score(*records):
    score = Score()
    for predicted, truth in records:
        score.add(compare(predicted, truth))
    return score


FILES = {"test_short_query": _score(([ON], [HALF]), ([], [ON])), "test_part_level": _score(([HALF], [HALF, HALF])), "none": Score()}
FLOOR = {"test_short_query": _score(([ON], [HALF]), ([ON], [ON])), "test_part_level": _score(([ON], [HALF, HALF])), "none": Score()}


def _report(rule="original"):
    return make_report("lasers", rule, FILES, FLOOR, {"checkpoint": "model", "step": 5})


def test_report():
    report = json.loads(json.dumps(_report(), allow_nan=False))
    short, every = report["files"]["test_short_query"], report["all"]
    assert short == {"records": 2, "masks": 2, "predicted_masks": 1, "gIoU": 0.25, "cIoU": 2 / 8, "empty_answers": 0.5}
    assert every["gIoU"] == (0.5 + 0 + 1 + 1) / 4
    assert every["cIoU"] == (2 + 0 + 2 + 2) / (4 + 4 + 2 + 2)
    assert every["records"] == 3
    assert report["files"]["none"]["gIoU"] is None
    assert report["baselines"]["whole image"]["all"]["gIoU"] == (0.5 + 1 + 0.5 + 0.5) / 4
    assert (report["checkpoint"], report["step"], report["decoding"]) == ("model", 5, "greedy")


def test_the_rule_is_named_and_said_in_words():
    for rule in ("original", "official-1024"):
        report = _report(rule)
        assert report["rule"] == rule
        assert "pairing by order" in report["rule_in_words"]
        assert f"rule {rule}: " in format_table(report)


def test_table():
    lines = format_table(_report()).splitlines()
    assert lines[0].split() == ["records", "masks", "gIoU", "cIoU", "empty", "answers"]
    assert lines[2].split() == ["test_short_query", "2", "2", "25.00", "25.00", "50.0", "%"]
    assert lines[4].split() == ["none", "0", "0", "-", "-", "-"]
    assert lines[6].split() == ["all", "3", "4", "62.50", "50.00", "33.3", "%"]
    assert lines[7].split()[:2] == ["(whole", "image)"]
    assert len({len(line) for line in lines[:8]}) == 1
