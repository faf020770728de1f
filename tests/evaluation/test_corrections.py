"""A copy of one's own table, in which only what was decided has changed."""

import csv
import re
import warnings
import zipfile

import pytest

from ivlkit.data.datasets.opening import from_csv
from ivlkit.errors import DataError
from ivlkit.evaluation.review.corrections import Decision, write_decisions


def correct(old, new):
    return Decision("correct", old, new)


def drop(old):
    return Decision("drop", old)


@pytest.fixture
def write(tmp_path):
    """`write("labels.csv", bytes)` → its path."""

    def make(name, content):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return make


TABLE = b"file,label,note\na.png,1,x\nb.png,7,y\nc.png,3,z\n"


class TestTables:
    def test_one_cell_changes_and_one_line_goes(self, write):
        path = write("labels.csv", TABLE)
        done = write_decisions(
            path,
            {"labels.csv:3": correct("7", "1"), "labels.csv:4": drop("3"), "labels.csv:2": Decision("keep", "1")},
        )
        assert done.path.name == "labels.corrected.csv"
        assert done.path.read_bytes() == b"file,label,note\na.png,1,x\nb.png,1,y\n"
        assert done.changes == (("labels.csv:3", "correct", "7", "1"), ("labels.csv:4", "drop", "3", None))
        assert "2 rows changed" in repr(done) and "'7' → '1'" in repr(done)
        assert path.read_bytes() == TABLE

    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            (b"file;label\r\na.png;7\r\n", b"file;label\r\na.png;1\r\n"),
            (b'file\tlabel\n"a.png"\t"7"', b'file\tlabel\n"a.png"\t"1"'),
            (b"\xef\xbb\xbffile,label\na.png,7\n", b"\xef\xbb\xbffile,label\na.png,1\n"),
            ("file,label,ü\na.png,7,é\n".encode("cp1252"), "file,label,ü\na.png,1,é\n".encode("cp1252")),
            (
                b"\xfe\xff" + "file,label\na.png,7\n".encode("utf-16-be"),
                b"\xfe\xff" + "file,label\na.png,1\n".encode("utf-16-be"),
            ),
            (
                b"\xff\xfe" + "file,label\na.png,7\n".encode("utf-16-le"),
                b"\xff\xfe" + "file,label\na.png,1\n".encode("utf-16-le"),
            ),
            (b'\nfile,label,"a ""b"""\n\na.png,7,"x, ""y"""\n', b'\nfile,label,"a ""b"""\n\na.png,1,"x, ""y"""\n'),
        ],
        ids=["semicolon", "tab", "mark", "cp1252", "utf-16-be", "utf-16-le", "quotes and blank lines"],
    )
    def test_separator_encoding_quotes_and_ends_of_lines_stay(self, write, content, expected):
        path = write("t.csv", content)
        line = 4 if content.startswith(b"\n") else 2
        assert write_decisions(path, {f"t.csv:{line}": correct("7", "1")}).path.read_bytes() == expected

    def test_a_table_of_which_all_is_kept_is_the_same(self, write):
        done = write_decisions(write("t.csv", TABLE), {"t.csv:2": Decision("keep", "1")})
        assert done.path.read_bytes() == TABLE and done.changes == ()

    def test_an_answer_that_needs_quotes_gets_them(self, write):
        done = write_decisions(write("t.csv", TABLE), {"t.csv:2": correct("1", 'a "b", c')})
        with open(done.path, newline="") as file:
            assert list(csv.reader(file))[1] == ["a.png", 'a "b", c', "x"]

    def test_a_row_that_spans_lines_counts_by_its_first(self, write):
        content = b'file,label\n"a\nb.png",7\nc.png,2\n'
        done = write_decisions(write("t.csv", content), {"t.csv:2": drop("7"), "t.csv:4": correct("2", "3")})
        assert done.path.read_bytes() == b"file,label\nc.png,3\n"

    def test_broken_rows_stay_as_they_are(self, write):
        content = b'file,label\na "b".png,"x"y,\nc.png,2\n'
        assert write_decisions(write("t.csv", content), {"t.csv:3": correct("2", "3")}).path.read_bytes() == (
            content.replace(b",2", b",3")
        )

    def test_answers_in_json_are_several_columns(self, write):
        content = b"file,sum,count,unit\na.png,11,,kg\n"
        old, new = '{"sum": "11", "count": null}', '{"sum": "12", "count": "3"}'
        done = write_decisions(write("t.csv", content), {"t.csv:2": correct(old, new)})
        assert done.path.read_bytes() == b"file,sum,count,unit\na.png,12,3,kg\n"

    def test_two_columns_with_these_truths_are_not_guessed(self, write):
        path = write("t.csv", b"file,first,second\na.png,7,7\n")
        with pytest.raises(DataError, match=r"columns \['first', 'second'\] hold these truths; expected one"):
            write_decisions(path, {"t.csv:2": correct("7", "1")})
        done = write_decisions(path, {"t.csv:2": correct("7", "1")}, answer="second")
        assert done.path.read_bytes() == b"file,first,second\na.png,7,1\n"

    def test_a_table_that_has_changed_since_is_refused(self, write):
        path = write("labels.csv", TABLE)
        with pytest.raises(DataError, match=r"labels\.csv:3: holds .*, but '8' was looked at"):
            write_decisions(path, {"labels.csv:3": correct("8", "1")}, answer="label")
        with pytest.raises(DataError, match=r"labels\.csv:9: no row begins on this line"):
            write_decisions(path, {"labels.csv:9": correct("8", "1")})

    @pytest.mark.parametrize("source", ["other.csv:2", "labels.csv", "labels.csv:x"])
    def test_a_source_of_another_table_is_refused(self, write, source):
        with pytest.raises(DataError, match="is no row of labels.csv"):
            write_decisions(write("labels.csv", TABLE), {source: drop("1")})

    def test_what_an_earlier_session_decided_stays(self, write):
        path = write("labels.csv", TABLE)
        write_decisions(path, {"labels.csv:2": correct("1", "4"), "labels.csv:3": correct("7", "5")})
        write_decisions(path, {"labels.csv:3": Decision("keep", "7"), "labels.csv:4": drop("3")})
        done = write_decisions(path, {"labels.csv:4": correct("3", "6")})
        assert done.path.read_bytes() == b"file,label,note\na.png,4,x\nb.png,7,y\nc.png,6,z\n"
        assert done.changes == (("labels.csv:2", "correct", "1", "4"), ("labels.csv:4", "correct", "3", "6"))
        done.path.unlink()  # whoever removes the copy begins anew
        assert write_decisions(path, {}).path.read_bytes() == TABLE

    def test_a_copy_whose_decisions_are_unknown_is_not_replaced(self, write):
        path, copy = write("labels.csv", TABLE), write("labels.corrected.csv", TABLE.replace(b"7", b"1"))
        with pytest.raises(DataError, match=r"labels\.corrected\.csv: .*; expected .*; move it .* to=…"):
            write_decisions(path, {"labels.csv:2": correct("1", "4")})
        assert write_decisions(path, {"labels.csv:3": correct("7", "1")}).path == copy  # it says the same

    def test_an_earlier_decision_about_a_table_that_changed_is_named(self, write):
        path = write("labels.csv", TABLE)
        write_decisions(path, {"labels.csv:3": correct("7", "1")})
        path.write_bytes(TABLE.replace(b"7", b"8"))
        with pytest.raises(DataError, match=r"labels\.csv:3: holds .*, but '7' was looked at.* new file \(to=…\)"):
            write_decisions(path, {"labels.csv:4": drop("3")})

    def test_the_table_itself_is_never_written(self, write):
        path = write("labels.csv", TABLE)
        with pytest.raises(DataError, match="is the table itself"):
            write_decisions(path, {"labels.csv:2": drop("1")}, to=path.parent / "." / "labels.csv")

    def test_a_folder_that_is_not_there_is_made(self, write):
        path = write("labels.csv", TABLE)
        to = path.parent / "mine" / "later" / "labels.csv"
        assert write_decisions(path, {}, to=to).path == to and to.read_bytes() == path.read_bytes()

    def test_an_answer_that_the_encoding_lacks_is_refused(self, write):
        path = write("t.csv", "file,label\nä.png,7\n".encode("cp1252"))
        with pytest.raises(DataError, match="can't be written as cp1252; save the table as CSV in UTF-8"):
            write_decisions(path, {"t.csv:2": correct("7", "漢")})

    def test_another_kind_of_table_is_refused(self, write):
        with pytest.raises(DataError, match=r"ends with '\.xls'; expected \.csv, \.tsv, \.xlsx, \.jsonl"):
            write_decisions(write("t.xls", b""), {"t.xls:2": drop("1")})

    def test_the_split_of_the_table_holds_for_the_copy(self, tmp_path, draw_picture):
        """No corrected row comes from the training part into the test part."""
        rows = ["file,label"]
        for number in range(12):
            draw_picture(56, 56, seed=number).save(tmp_path / f"{number}.png")
            rows.append(f"{number}.png,{number}")
        (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")

        def parts(name):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                data = from_csv(tmp_path / name, question="What is it?", answer="label", to=tmp_path / f"{name}_rows")
                split = data.split(train=0.5, test=0.5, alike="apart")
            return [{record.images[0].name for record in part} for part in split]

        before = parts("labels.csv")
        write_decisions(tmp_path / "labels.csv", {"labels.csv:2": correct("0", "9"), "labels.csv:3": drop("1")})
        assert parts("labels.corrected.csv") == [part - {"1.png"} for part in before]


class TestSpreadsheets:
    """Read again by openpyxl alone."""

    @pytest.fixture
    def make(self, tmp_path):
        """`make([row, …])` → the path of a spreadsheet with these rows, a colour, a width, a second sheet."""
        openpyxl = pytest.importorskip("openpyxl")

        def write(rows):
            book = openpyxl.Workbook()
            sheet = book.active
            for row in rows:
                sheet.append(row)
            for cell in sheet["B"]:
                cell.fill = openpyxl.styles.PatternFill("solid", fgColor="FFCC00")
            sheet["B3"].number_format, sheet.column_dimensions["A"].width = "0.00", 33
            sheet.conditional_formatting.add("B1:B9", openpyxl.formatting.rule.CellIsRule("equal", ["7"]))
            book.create_sheet("sums")["A1"] = "=COUNTIF(Sheet!B:B,7)"
            book.save(tmp_path / "t.xlsx")
            return tmp_path / "t.xlsx"

        return write

    ROWS = (["file", "label", "note"], ["a.png", 1, "x"], ["b.png", 7, "y"], ["c.png", "007", "=z"], ["d.png", 3, None])

    @staticmethod
    def cells(path, sheet=0):
        import openpyxl

        return [list(row) for row in openpyxl.load_workbook(path).worksheets[sheet].iter_rows(values_only=True)]

    def test_only_the_cells_of_answers_change_and_no_row_moves(self, make):
        import openpyxl

        path = make(self.ROWS[:3] + self.ROWS[4:])
        before = path.read_bytes()
        decided = {"t.xlsx:3": correct("7", "17"), "t.xlsx:2": drop("1"), "t.xlsx:4": Decision("keep", "3")}
        done = write_decisions(path, decided)
        assert done.path.name == "t.corrected.xlsx" and path.read_bytes() == before
        assert self.cells(done.path) == [self.ROWS[0], [None] * 3, ["b.png", 17, "y"], self.ROWS[4]]
        book = openpyxl.load_workbook(done.path)
        sheet, old = book.worksheets[0], openpyxl.load_workbook(path).worksheets[0]
        assert [[cell.style_id for cell in row] for row in sheet] == [[cell.style_id for cell in row] for row in old]
        assert sheet["B3"].number_format == "0.00" and sheet["B2"].fill.fgColor.rgb == "00FFCC00"
        assert sheet.column_dimensions["A"].width == 33 and len(sheet.conditional_formatting) == 1
        assert book.worksheets[1]["A1"].value == "=COUNTIF(Sheet!B:B,7)"

    def test_it_is_written_to_the_sheet_that_is_seen(self, make):
        import openpyxl

        book = openpyxl.load_workbook(path := make(self.ROWS))
        book.create_sheet("old", 0).sheet_state, book.active = "hidden", 1
        book.save(path)
        done = write_decisions(path, {"t.xlsx:3": correct("7", "17")})
        assert self.cells(done.path) == [] and self.cells(done.path, 1)[2] == ["b.png", 17, "y"]

    @pytest.mark.parametrize(
        ("old", "new", "found"),
        [
            (7, "1", 1),
            (7, "2.5", 2.5),
            (7, "007", "007"),
            (7, "seven", "seven"),
            ("7", "1", "1"),
            (True, "False", "False"),
        ],
    )
    def test_a_number_stays_one_and_a_text_stays_text(self, make, old, new, found):
        done = write_decisions(make([["file", "label"], ["a.png", old]]), {"t.xlsx:2": correct(str(old), new)})
        assert self.cells(done.path)[1] == ["a.png", found] and type(self.cells(done.path)[1][1]) is type(found)

    def test_an_answer_that_begins_as_a_formula_is_a_text(self, make):
        import openpyxl

        done = write_decisions(make(self.ROWS[:2]), {"t.xlsx:2": correct("1", "=1+1")})
        assert openpyxl.load_workbook(done.path).worksheets[0]["B2"].data_type == "s"

    def test_answers_in_json_are_several_columns(self, make):
        path = make([["file", "sum", "count"], ["a.png", 11, None]])
        old, new = '{"sum": 11, "count": null}', '{"sum": 12, "count": "3"}'
        assert self.cells(write_decisions(path, {"t.xlsx:2": correct(old, new)}).path)[1] == ["a.png", 12, "3"]

    def test_formulas_of_other_cells_stay(self, make):
        """A dropped row's go with it; the others are worked out anew when a spreadsheet program opens the copy."""
        import openpyxl

        path = make([*self.ROWS[:2], ["b.png", 7, '=B3&"!"'], ["c.png", 3, '=B4&"?"']])
        done = write_decisions(path, {"t.xlsx:3": correct("7", "1"), "t.xlsx:4": drop("3")})
        assert self.cells(done.path) == [*self.ROWS[:2], ["b.png", 1, '=B3&"!"'], [None] * 3]
        assert self.cells(done.path, sheet=1) == self.cells(path, sheet=1) == [["=COUNTIF(Sheet!B:B,7)"]]
        book = openpyxl.load_workbook(done.path)
        assert book.calculation.fullCalcOnLoad and book.worksheets[0]["B3"].number_format == "0.00"
        assert book.worksheets[0]["B3"].fill.fgColor.rgb == "00FFCC00"

    @staticmethod
    def with_values(path, **values):
        """The sheet as a spreadsheet program saves it: the values of formulas beside them."""
        with zipfile.ZipFile(path) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        sheet = parts["xl/worksheets/sheet1.xml"].decode()
        for cell, value in values.items():
            sheet, count = re.subn(rf'(<c r="{cell}".*?)(?:<v></v>|<v/>)', rf"\g<1><v>{value}</v>", sheet, count=1)
            assert count == 1
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in parts.items():
                archive.writestr(name, sheet if name == "xl/worksheets/sheet1.xml" else content)

    def test_a_formula_in_the_cell_to_be_written_is_refused(self, make):
        path = make([*self.ROWS[:2], ["b.png", "=3+4", "y"]])
        self.with_values(path, B3=7)
        with pytest.raises(
            DataError, match=r"t\.xlsx:3: B3 is filled by a formula.*; expected a value; correct what the formula reads"
        ):
            write_decisions(path, {"t.xlsx:3": correct("7", "1")})
        assert self.cells(write_decisions(path, {"t.xlsx:3": drop("7")}).path)[2] == [None] * 3

    def test_a_dropped_row_may_hold_merged_cells(self, make):
        import openpyxl

        path = make([*self.ROWS[:2], ["b.png", 7, None]])
        book = openpyxl.load_workbook(path)
        book.worksheets[0].merge_cells("B3:C3")
        book.save(path)
        assert self.cells(write_decisions(path, {"t.xlsx:3": drop("7")}).path)[2] == [None] * 3

    @pytest.mark.parametrize("decision", [correct("7", "1"), drop("7")])
    def test_a_cell_that_a_formula_shares_with_other_rows_is_refused(self, make, decision):
        import openpyxl

        path = make([*self.ROWS[:2], ["b.png", 7, None]])
        book = openpyxl.load_workbook(path)
        book.worksheets[0]["B2"] = openpyxl.worksheet.formula.ArrayFormula("B2:B3", "=LEN(C2:C3)")
        book.save(path)
        with pytest.raises(DataError, match=r"t\.xlsx:3: B3 is filled by a formula"):
            write_decisions(path, {"t.xlsx:3": decision})

    @pytest.mark.parametrize("new", ["a\x01", "a" * 32_768])
    def test_what_no_cell_can_hold_is_refused(self, make, new):
        with pytest.raises(DataError, match=r"t\.xlsx:2: 'a.* can't stand in a cell; expected at most 32,767"):
            write_decisions(make(self.ROWS[:2]), {"t.xlsx:2": correct("1", new)})

    def test_it_is_read_as_the_table_was(self, make, draw_picture):
        path = make(self.ROWS[:3])
        for name in "ab":
            draw_picture(56, 56).save(path.parent / f"{name}.png")
        done = write_decisions(path, {"t.xlsx:2": drop("1"), "t.xlsx:3": correct("7", "1")})
        data = from_csv(done.path, question="What is it?", to=path.parent / "rows")
        assert [(row.answer, row.extra["source"]) for row in data] == [("1", "t.corrected.xlsx:3")]


class TestRows:
    LINE = (
        '{"id": "7",  "conversations": [{"from": "human", "value": "Is it \\"7\\"?"}, '
        '{"from": "gpt", "value": "%s"}]}\n'
    )

    @pytest.mark.parametrize(("old", "new"), [("7", "1"), ("é", "ü"), ('a "b"', "c")])
    @pytest.mark.parametrize("encode", [lambda text: text, lambda text: text.encode("unicode_escape").decode()])
    def test_only_the_last_answer_of_a_row_changes(self, write, old, new, encode):
        line = self.LINE % encode(old).replace('"', '\\"').replace("\\xe9", "\\u00e9")
        expected = self.LINE % encode(new).replace("\\xfc", "\\u00fc")
        path = write("rows.jsonl", (line + line).encode())
        done = write_decisions(path, {"rows.jsonl:2": correct(old, new)})
        assert done.path.read_text() == line + expected

    def test_a_dropped_row_leaves_the_others(self, write):
        path = write("rows.jsonl", (self.LINE % "7" + "\n" + self.LINE % "8").encode())
        assert write_decisions(path, {"rows.jsonl:3": drop("8")}).path.read_text() == self.LINE % "7" + "\n"

    def test_another_truth_than_was_looked_at_is_refused(self, write):
        path = write("rows.jsonl", (self.LINE % "7").encode())
        with pytest.raises(DataError, match=r"rows\.jsonl:1: holds '7', but '8' was looked at"):
            write_decisions(path, {"rows.jsonl:1": drop("8")})
