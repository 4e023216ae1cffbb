"""The report: what is read of a suite's JSON, what is said and drawn of it, and that the page needs nothing beside."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import bench_made as made
import pytest

from benchmarks import collect
from benchmarks.charts import Chart, charts_of, figure, times
from benchmarks.page import render
from benchmarks.results import ResultError, load, read

HOSTILE = '<script>alert("x")</script>'


def _charts(*reports: object) -> list[Chart]:
    return [chart for _, charts in charts_of([made.result_of(one) for one in reports]) for chart in charts]


def _page(*reports: object) -> str:
    return render([made.result_of(one) for one in reports], lambda chart, key: f"<svg id={key}>", "today")


# -- reading -----------------------------------------------------------------------------------------------------------


def test_what_a_suite_writes_is_read_back() -> None:
    """Samples, roles, units and targets survive the way through a file."""
    _, table = written = made.table_of({"poolkit": (1.0, 3.0, 2.0), "bare psycopg": (0.5,)})
    read_back = made.result_of(written[0]).tables[0]
    assert read_back.of("us")["poolkit"].samples == (1.0, 3.0, 2.0)
    assert read_back.of("us")["poolkit"].middle == 2.0
    assert read_back.roles == {"poolkit": "ours", "bare psycopg": "floor"}
    assert (read_back.key, read_back.column("us").better) == (table.key, "less")


def test_what_was_not_measured_is_not_there() -> None:
    """A row without samples in a column is no zero."""
    report, table = made.table_of({"poolkit": (1.0,)})
    table.add("DBUtils")
    assert list(made.result_of(report).tables[0].of("us")) == ["poolkit"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "is not JSON"),
        ("[]", "TypeError"),
        ("{}", "KeyError"),
        ('{"format": 0, "suite": "x"}', "this reads format 1"),
        ('{"format": 1, "suite": "x", "conditions": {}, "tables": [{"key": 1}]}', "KeyError: 'title'"),
    ],
)
def test_what_is_no_result_is_refused_by_name(tmp_path: Path, text: str, why: str) -> None:
    """One error says which file, what is wrong and what to do."""
    file = tmp_path / "odd.json"
    file.write_text(text)
    with pytest.raises(ResultError, match=rf"odd\.json: .*{re.escape(why)}.*--json"):
        load([file])


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """The same for one that can't be read."""
    with pytest.raises(ResultError, match=r"gone\.json: can't be read \(No such file"):
        load([tmp_path / "gone.json"])


def test_a_suite_is_shown_once(tmp_path: Path) -> None:
    """Two runs of a suite belong to two reports: in one, nobody could tell which is which."""
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for file in files:
        file.write_text(json.dumps(made.report("micro").plain()))
    with pytest.raises(ResultError, match=r"b\.json: is the second result of the suite micro"):
        load(files)


# -- what is said ------------------------------------------------------------------------------------------------------


def test_bars_are_sorted_best_first_with_ratios_to_ours() -> None:
    """The reader compares from the top down, and each other row tells how it stands to poolkit's."""
    chart = _charts(made.table_of({"psycopg_pool": (8.0,), "poolkit": (2.0,), "ideal": (1.0,)})[0])[0]
    assert [mark.name for mark in chart.marks] == ["ideal", "poolkit", "psycopg_pool"]
    assert [mark.label for mark in chart.marks][1:] == [
        "2.00 \N{MICRO SIGN}s",
        "8.00 \N{MICRO SIGN}s · 4.00\N{MULTIPLICATION SIGN}",
    ]
    assert "psycopg_pool 4.00 times that" in chart.answer


def test_where_more_is_better_the_most_comes_first() -> None:
    """The direction is the table's own."""
    chart = _charts(made.table_of({"poolkit": (2.0,), "psycopg_pool": (8.0,)}, better="more")[0])[0]
    assert [mark.name for mark in chart.marks] == ["psycopg_pool", "poolkit"]
    assert chart.axis.endswith("more is better")


def test_one_row_is_enough() -> None:
    """Where no other library is installed, the page still says what ours took."""
    chart = _charts(made.table_of({"poolkit": (2.0, 2.5)})[0])[0]
    assert chart.answer == "poolkit: 2.25 \N{MICRO SIGN}s."
    assert "poolkit 2.25" in chart.alt


def test_a_table_without_ours_has_no_ratios() -> None:
    """There is nothing to set the others in relation to."""
    chart = _charts(made.table_of({"psycopg_pool": (8.0,)})[0])[0]
    assert (chart.answer, chart.marks[0].label) == ("", "8.00 \N{MICRO SIGN}s")


def test_a_table_with_steps_becomes_lines() -> None:
    """A growth is followed from its first step to its last; a line ends where nothing was measured further on."""
    chart = _charts(made.growth())[0]
    assert chart.kind == "lines"
    assert [(one.name, len(one.points)) for one in chart.series] == [("poolkit", 3), ("psycopg_pool", 2)]
    assert "1.20 times as much" in chart.answer
    assert "psycopg_pool from 4 to 5" in chart.alt


def test_a_distribution_shows_who_starves() -> None:
    """Sorted by the longest wait: the quickest in the middle comes last."""
    chart = _charts(made.waits())[1]
    assert chart.kind == "ranges"
    assert [mark.name for mark in chart.marks] == ["poolkit", "queue.LifoQueue"]
    assert "queue.LifoQueue: one waited for 3,006 ms" in chart.answer
    assert chart.question == "Who starves? 32 threads"
    assert chart.marks[1].label == "<0.01 · 0.1 · 3,006"


def test_the_question_is_that_of_the_headline() -> None:
    """The same contention is asked for what was got done, or for how evenly."""
    report = made.waits()
    assert _charts(report)[0].question == "How much is got done? 32 threads"
    report.tables[0].columns = [*report.tables[0].columns, made.Column("fairness", "fairness")]
    report.tables[0].headline = "fairness"
    report.tables[0].rows["poolkit"]["fairness"] = [0.98]
    assert _charts(report)[0].question == "Is everybody served alike? 32 threads"


def test_an_empty_table_has_no_plot() -> None:
    """A suite that measured nothing is said to, and not drawn."""
    assert _charts(made.table_of({})[0]) == []
    assert "Nothing of this suite was measured" in _page(made.table_of({})[0])


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "0"), (1234.5, "1,234"), (99.94, "99.9"), (1.234, "1.23"), (0.0123, "0.0123"), (0.00001, "1.0e-05")],
)
def test_figures_have_the_digits_they_are_worth(value: float, said: str) -> None:
    """Three that count, whatever the size."""
    assert figure(value) == said


def test_ratios_keep_hundredths_below_ten() -> None:
    """1.02 and 0.98 are told apart; 41.234 has one digit after the point, and 412.3 none."""
    assert [times(ratio) for ratio in (0.984, 1.02, 41.234, 412.3)] == ["0.98", "1.02", "41.2", "412"]


# -- the page ----------------------------------------------------------------------------------------------------------


class _Reader(HTMLParser):
    """Notes what a page refers to, and its elements with what they are told."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for found, attributes in self.found if found == tag]


def test_what_comes_from_results_is_escaped() -> None:
    """Names, titles, notes, targets and conditions are text, whatever is in them."""
    report, table = made.table_of({f"poolkit {HOSTILE}": (1.0,), HOSTILE: (2.0,)}, note=HOSTILE)
    table.title = table.key = report.suite = HOSTILE
    table.targets.append(made.Target(HOSTILE, f"poolkit {HOSTILE}", "us", at_most=1))
    report.conditions = {"python": HOSTILE, "machine": HOSTILE, HOSTILE: HOSTILE, "versions": {HOSTILE: HOSTILE}}
    page = render([made.result_of(report)], lambda *_: "", HOSTILE.replace("<", "").replace(">", ""))
    assert "<script" not in page
    assert page.count("&lt;script&gt;") > 8


def test_the_page_asks_for_nothing_from_elsewhere() -> None:
    """It can be opened anywhere: no script, no style sheet, no font, no picture but its own drawings."""
    reader = _Reader(_page(made.table_of({"poolkit": (1.0,)})[0], made.growth(), made.waits()))
    assert not [tag for tag, _ in reader.found if tag in ("script", "link", "img", "iframe")]
    assert all(str(link["href"]).startswith("#") or ":" not in str(link["href"]) for link in reader.all("a"))


def test_every_plot_can_be_read_aloud() -> None:
    """A plot has its numbers in its label, and as a table under it."""
    page = _page(made.table_of({"poolkit": (1.25,), "psycopg_pool": (5.0,)})[0], made.growth())
    plots = [div for div in _Reader(page).all("div") if div.get("role") == "img"]
    assert ["psycopg_pool" in str(plot["aria-label"]) for plot in plots] == [True, True]
    assert page.count("<details>") == 2
    assert "<td>1.25</td>" in page


def test_links_within_the_page_lead_somewhere() -> None:
    """Every suite in the contents is there, and so is what a target points at."""
    reader = _Reader(_page(made.growth(), made.waits()))
    ids = {attributes.get("id") for _, attributes in reader.found}
    assert {str(link["href"])[1:] for link in reader.all("a") if str(link["href"]).startswith("#")} <= ids


def test_targets_are_counted_and_the_missed_come_first() -> None:
    """What was missed is not hidden below; what was not measured is neither reached nor missed."""
    report, table = made.table_of({"poolkit": (2.0,)})
    for text, limit in (("kept", 3.0), ("broken", 1.0)):
        table.targets.append(made.Target(text, "poolkit", "us", at_most=limit))
    table.targets.append(made.Target("unknown", "nobody", "us", at_most=1.0))
    page = _page(report)
    assert "<b>1</b> of 2 targets reached" in page
    assert page.index("broken") < page.index("kept")
    assert "unknown" not in page


def test_suites_come_in_the_order_of_the_story() -> None:
    """Whatever the order of the files; one that the page does not know comes last."""
    odd = made.report("something_new")
    page = _page(odd, made.growth(), made.table_of({"poolkit": (1.0,)})[0])
    places = [page.index(f'<section id="{suite}"') for suite in ("micro", "growth", "something_new")]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("suite", "key", "named"),
    [
        ("micro", "micro-threads", "micro-threads"),
        ("round_trips", "round-trips-threads", "round-trips-threads"),
        ("requests", "flask_item", "requests-flask-item"),
        ("../etc", "../../passwd", "etc-passwd"),
    ],
)
def test_charts_are_named_after_suite_and_table(suite: str, key: str, named: str) -> None:
    """The name is a file's as well: it can't lead out of the report's folder, and no two suites share one."""
    report, table = made.table_of({"poolkit": (1.0,)})
    report.suite, table.key = suite, key
    assert _charts(report)[0].key == named


# -- the command -------------------------------------------------------------------------------------------------------


def test_a_suite_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is measured or written."""
    assert collect.main([str(tmp_path / "out"), "mikro"], ["micro", "burst"]) == 2
    assert capsys.readouterr().err == "bench: no suite 'mikro'; there are micro, burst\n"
    assert not (tmp_path / "out").exists()


def test_a_report_needs_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is guessed."""
    assert collect.main(["--quick"], ["micro"]) == 2
    assert capsys.readouterr().err == "bench: --report needs a folder\n"


def test_a_file_that_is_no_result_ends_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the file's name, and without a page."""
    (tmp_path / "odd.json").write_text("{}")
    assert collect.main([str(tmp_path), str(tmp_path / "odd.json")], ["micro"]) == 2
    assert "odd.json" in capsys.readouterr().err
    assert not (tmp_path / "index.html").exists()


def test_suites_are_measured_one_by_one_and_a_failed_one_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page is made of the rest, and the exit status says that something is missing."""
    pages: list[list[str]] = []

    def measured(suite: str, folder: Path, options: list[str]) -> bool:
        assert options == ["--quick"]
        (folder / f"{suite}.json").write_text(json.dumps(made.report(suite).plain()))
        return suite != "burst"

    def write(results: list[object], folder: Path) -> Path:
        pages.append([result.suite for result in results])  # type: ignore[attr-defined]
        return folder / "index.html"

    monkeypatch.setattr(collect, "_measured", measured)
    monkeypatch.setattr(collect, "write", write)
    assert collect.main([str(tmp_path), "--quick"], ["micro", "burst"]) == 1
    assert pages == [["micro"]]
    assert "the suite burst failed" in capsys.readouterr().err


def test_what_the_page_reads_is_what_is_written_now() -> None:
    """A change of the format is a change of both sides: the number is the same, and so are the keys."""
    plain = made.waits().plain()
    assert read(plain).suite == "contention"
    assert read(json.loads(json.dumps(plain))).tables[0].targets[0].reached is True
