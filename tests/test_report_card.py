"""The report card: whole or not there, everything escaped, one line for what is wrong, nothing asked twice."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from lmsurvey_code import evaluation, report_card
from lmsurvey_code.harness import Answer, EvalTask, Item
from lmsurvey_code.report_card import Entry, main, page, safe, write_card

EVIL = "<script>alert(\"1\")</script><img src=x onerror='y'>&\0\ud800"
CHOICE = EvalTask(f"task {EVIL}", (Item(EVIL, EVIL, (f" {EVIL}", " b"), 1), Item("2", "q", (" c", " d"), 0)))
TEXT = EvalTask("text", (Item("1", "q", target=EVIL), Item("2", "q", target="b")))


def entries():
    weighed = (Answer(EVIL, (-1.0, -2.0), n_read=1234, seconds=1.5), Answer("2", (-1.0, -3.0), n_read=1))
    written = (Answer("1", text=EVIL, n_read=3, n_written=2), Answer("2", text="x", n_written=5))
    return [Entry(EVIL, CHOICE, weighed), Entry("writing", TEXT, written), Entry("no", CHOICE, why_not=EVIL)]


class Tags(HTMLParser):
    """All tags and attributes of a page, and whether each is closed."""

    def __init__(self):
        super().__init__()
        self.names, self.attributes, self.open, self.text = set(), set(), [], ""

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in ("meta", "br", "path", "circle"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)

    def handle_data(self, data):
        self.text += data


def test_no_text_of_a_task_or_model_becomes_html():
    tags = Tags()
    text = page(EVIL, [EVIL], entries())
    tags.feed(text)
    assert tags.open == []
    assert not {"script", "img", "iframe", "link"} & tags.names
    assert not [name for name in tags.attributes if name.startswith("on") or name in ("src", "href")]
    assert tags.text.count('<script>alert("1")</script>') >= 8
    assert "\0" not in text
    text.encode("utf-8")  # no half of a pair is left


def test_safe_escapes_marks_and_quotes():
    assert safe("<a b=\"c\" d='e'>&\x07") == "&lt;a b=&quot;c&quot; d=&#x27;e&#x27;&gt;&amp;\ufffd"


def test_the_numbers_of_a_row():
    s = entries()[0].summary()
    assert (s["n"], s["right"], s["n_read"], s["seconds"]) == (2, 0.5, 1235, 1.5)
    assert s["low"] <= 0.5 <= s["high"]
    assert "1,235" in page("m", [], entries())
    assert s["baselines"]["guess"] == 0.5


def test_a_card_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "card.html"
    write_card(path, "m", [], entries())
    before = path.read_bytes()
    monkeypatch.setattr("lmsurvey_code.files.os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_card(path, "other", [], entries())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


class Writer:
    """A model that only writes."""

    name, asked = "writer", 0

    def generate(self, prompt, *, max_new_tokens=64, temperature=None):
        Writer.asked += 1
        return "x"

    def __repr__(self):
        return "Writer()"


def test_the_command_writes_a_card_and_asks_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report_card, "open_llm", lambda name, dtype: Writer())
    args = ["--report", str(tmp_path / "card.html"), "--limit", "3"]
    main(args)
    asked = Writer.asked
    assert asked == 6  # two tasks are written, four need probabilities
    main(args)
    assert Writer.asked == asked
    text = (tmp_path / "card.html").read_text(encoding="utf-8")
    assert text.count("not asked: the model gives no probabilities") == 4
    assert "tools: 0.0% [0.0%, 0.0%] right" in capsys.readouterr().out
    assert len((tmp_path / "card.answers.jsonl").read_text().splitlines()) == 6


def test_own_tasks_and_single_abilities(tmp_path, monkeypatch):
    monkeypatch.setattr(report_card, "open_llm", lambda name, dtype: Writer())
    rows = [{"id": str(i), "prompt": f"{i}", "target": "x"} for i in range(3)]
    file = tmp_path / "own.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    main(["--report", str(tmp_path / "card.html"), "--task-file", str(file)])
    assert "100.0%" in (tmp_path / "card.html").read_text(encoding="utf-8")
    parse = report_card.arguments().parse_args
    assert [*report_card.tasks_of(parse(["--ability", "tools"]))] == ["tools"]
    assert [*report_card.tasks_of(parse(["--task-file", str(file), "--ability", "tools"]))] == [
        "tools",
        f"file: {file}",
    ]
    assert len(report_card.tasks_of(parse([]))) == 6


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--ability", "magic"], r"ValueError: --ability: 'magic'; allowed: language generation"),
        (["--limit", "1"], "ValueError: --limit: 1; allowed: 2 or more"),
        (["--task-file", "none.jsonl"], "FileNotFoundError: path: no file 'none.jsonl'"),
        (["--public", "none"], "ValueError: name: 'none'; allowed: arc_easy"),
        (["--model", "no such"], "ValueError: name: 'no such' is neither a known model nor a folder"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(args, message, tmp_path):
    with pytest.raises(SystemExit, match=message):
        main(["--report", str(tmp_path / "card.html"), *args])
    assert list(tmp_path.iterdir()) == []


def test_the_module_is_the_command():
    with open(evaluation.__file__, encoding="utf-8") as file:
        end = file.read().rpartition('if __name__ == "__main__":')[2]
    assert re.fullmatch(r"\s+from lmsurvey_code.report_card import main\s+main\(\)\s*", end)


def test_examples_show_the_end_of_a_long_question():
    long = EvalTask("t", (Item("1", "a" * 500 + "z", (" b", " c"), 0), CHOICE.items[1]))
    text = page("m", [], [Entry("x", replace(long), (Answer("1", (-1, -2)), Answer("2", (-1, -2))))])
    assert "… aaa" in text
    assert "a" * 500 not in text
    assert "az</pre>" in text
