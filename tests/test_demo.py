"""`make demo` in small: the whole path runs, and a second call trains nothing."""

import re

from ivlkit.demo import run_demo, summary
from ivlkit.evaluation.evaluate import Report, Row


def test_the_demo_leaves_a_report_and_a_model_that_answers(tmp_path):
    said = []
    options = {"train_rows": 32, "test_rows": 6, "say": said.append, "epochs": 1}
    found = run_demo(tmp_path / "demo", **options)
    page = found["report"].read_text()
    assert page.startswith("<!doctype html>") and "data:image/" in page and len(page) < 10_000_000
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert sorted(path.name for path in found["exported"].iterdir()) == [
        "README.md",
        "added_tokens.json",
        "chat_template.jinja",
        "config.json",
        "lmdeploy.json",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.model",
        "tokenizer_config.json",
    ]
    assert found["run"].state == "finished" and len(found["run"].history) == 2
    assert len(found["before"].rows) == len(found["after"].rows) == 6

    log = found["run"].folder / "log.jsonl"
    written = log.stat().st_mtime_ns
    run_demo(tmp_path / "demo", **options)
    assert log.stat().st_mtime_ns == written


def test_the_summary_tells_before_and_after_by_number_of_digits():
    def report(*scores):
        rows = [
            Row(f"test.jsonl:{n}", "", "", "", score, extra={"num_digits": 1 + n // 2})
            for n, score in enumerate(scores)
        ]
        return Report("exact_match", tuple(rows), {})

    lines = summary(report(0, 0, 1, 0), report(1, 1, 1, 0)).splitlines()
    assert lines[1].split() == ["1", "digit(s),", "2", "rows", "0.0%", "100.0%"]
    assert lines[2].split() == ["2", "digit(s),", "2", "rows", "50.0%", "50.0%"]
    assert lines[3].startswith("all, 4 rows") and "25.0%   75.0%" in lines[3]
