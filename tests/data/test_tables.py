"""A table of labels → rows, whatever a spreadsheet made of it; every line is a row or is listed with its reason."""

import codecs
import datetime
import errno
import json
import shutil
from pathlib import Path

import pytest

import ivlkit as ivl
from ivlkit.data.datasets.opening import from_dataset, open_data
from ivlkit.data.datasets.questions import questions_of
from ivlkit.data.importing.convert import convert
from ivlkit.data.importing.tables import table_rows
from ivlkit.data.rows.media import open_image
from ivlkit.data.rows.records import Turn, accepted_truth
from ivlkit.errors import DataError

QUESTION = "What is it?"


@pytest.fixture
def photos(tmp_path, draw_picture):
    """photos/p0.jpg … photos/p3.jpg and photos/sub/Q.PNG, all different."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for number in range(4):
        draw_picture(60 + number, 40, seed=number).save(folder / f"p{number}.jpg")
    draw_picture(30, 30).save(folder / "sub" / "Q.PNG")
    return folder


@pytest.fixture
def write_csv(tmp_path):
    def write(text, name="labels.csv", encoding="utf-8"):
        (tmp_path / name).write_bytes(text.encode(encoding))
        return tmp_path / name

    return write


def answers(data):
    return [record.answer for record in data]


def names(data):
    return [record.images[0].name for record in data]


def test_one_line_makes_a_data_set(write_csv, photos):
    path = write_csv("file,label\np0.jpg,cat\np1.jpg,dog\n")
    data = ivl.from_csv(path, images=photos, question=QUESTION, answer="label")
    assert (len(data), names(data), answers(data)) == (2, ["p0.jpg", "p1.jpg"], ["cat", "dog"])
    assert data[0].turns[0].text == "<image>\nWhat is it?"
    assert data[1].extra == {"label": "dog", "source": "labels.csv:3"}
    assert "labels.csv (csv, , between cells, utf-8)" in repr(data)


def test_a_run_can_open_it_again(write_csv, photos):
    path = write_csv("file,label\np0.jpg,cat\n")
    data = ivl.from_csv(path, images=photos, question=QUESTION)
    assert open_data(data.path).fingerprint == data.fingerprint
    assert data.path == path.with_name("labels_ivlkit") / "meta.json"
    assert ivl.from_csv(path, images=photos, question=QUESTION).fingerprint == data.fingerprint


def test_it_encodes(write_csv, photos, processor):
    data = ivl.from_csv(write_csv("file,label\np0.jpg,cat\n"), images=photos, question=QUESTION)
    assert ivl.encode(data[0], processor).num_supervised > 0


@pytest.mark.parametrize(
    ("text", "encoding", "said"),
    [
        ("file;label\np0.jpg;Größe, 3\n", "utf-8", "csv, ; between cells, utf-8"),
        ("file\tlabel\np0.jpg\tGröße, 3\n", "utf-8", "csv, tab between cells, utf-8"),
        ("file|label\np0.jpg|Größe, 3\n", "utf-8", "csv, | between cells, utf-8"),
        ('file,label\np0.jpg,"Größe, 3"\n', "utf-8-sig", "csv, , between cells, utf-8-sig"),
        ("file;label\r\np0.jpg;Größe, 3\r\n", "latin-1", "csv, ; between cells, cp1252"),
        ("file;label\np0.jpg;Größe, 3\n", "utf-16", "csv, ; between cells, utf-16"),
        ("sep=;\r\nfile;label\r\np0.jpg;Größe, 3\r\n", "utf-8-sig", "csv, ; between cells, utf-8-sig"),
        ("\nfile;label\n\n;\np0.jpg;Größe, 3\n\n", "utf-8", "csv, ; between cells, utf-8"),
    ],
)
def test_separators_and_encodings_are_detected(write_csv, photos, text, encoding, said):
    path = write_csv(text, encoding=encoding)
    assert table_rows(path, question=QUESTION)[0] == said
    assert answers(ivl.from_csv(path, images=photos, question=QUESTION)) == ["Größe, 3"]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [("一只黑猫坐在桌子上", "gbk"), ("一隻黑貓坐在桌上", "big5"), ("кот,чёрный кот", "cp1251"), ("고양이", "cp949")],
)
def test_an_encoding_that_is_not_western_is_refused_rather_than_misread(write_csv, photos, text, encoding):
    path = write_csv(f'file,label\np0.jpg,"{text}"\n', encoding=encoding)
    with pytest.raises(
        DataError, match="labels.csv: not UTF-8, and its words are not Western .*; save it as CSV in UTF-8"
    ):
        ivl.from_csv(path, images=photos, question=QUESTION)


@pytest.mark.parametrize("text", ["5 à 7 €", "Größe", "“Âge” – été à 30°", "ß"])
def test_western_words_are_read_in_their_encoding(write_csv, photos, text):
    path = write_csv(f"file,label\np0.jpg,{text}\n", encoding="cp1252")
    assert answers(ivl.from_csv(path, images=photos, question=QUESTION)) == [text]


def test_one_byte_of_another_encoding_costs_its_row_and_no_other(tmp_path, photos):
    path = tmp_path / "labels.csv"
    path.write_bytes("file,label\np0.jpg,café\np1.jpg,".encode() + "Größe\n".encode("latin-1"))
    with pytest.raises(DataError, match="labels.csv:3: byte 0xf6 in cell 2 is not utf-8; type the character anew"):
        ivl.from_csv(path, images=photos, question=QUESTION)
    assert answers(ivl.from_csv(path, images=photos, question=QUESTION, rejects="list")) == ["café"]


def test_a_table_of_ms_dos_is_not_misread_in_silence(write_csv, photos):
    path = write_csv("file,label\np0.jpg,ein grünes Haus\n", encoding="cp850")
    with pytest.raises(DataError, match="labels.csv:2: byte 0x81 in cell 2 is not cp1252; .* or save all as UTF-8"):
        ivl.from_csv(path, images=photos, question=QUESTION)


def test_a_tsv_is_cut_at_tabs(write_csv, photos):
    path = write_csv("file\tlabel\np0.jpg\ta,b,c\n", "labels.tsv")
    assert answers(ivl.from_csv(path, images=photos, question=QUESTION)) == ["a,b,c"]


@pytest.mark.parametrize(
    ("name", "found"),
    [("p0", "p0.jpg"), ("P0.JPG", "p0.jpg"), ("sub\\Q.PNG", "Q.PNG"), ("sub\\q", "Q.PNG"), (" p1.jpg ", "p1.jpg")],
)
def test_a_name_is_seen_through(write_csv, photos, name, found):
    path = write_csv(f"file;label\n{name};x\n")
    assert names(ivl.from_csv(path, images=photos, question=QUESTION)) == [found]


def test_a_name_that_may_be_two_files_is_refused(write_csv, photos, draw_picture):
    draw_picture().save(photos / "p0.png")
    with pytest.raises(DataError, match=r"labels.csv:2: p0 may be p0.jpg or p0.png; expected one; add the suffix"):
        ivl.from_csv(write_csv("file,label\np0,x\n"), images=photos, question=QUESTION)


def test_the_question_may_be_a_column_and_the_columns_named(write_csv, photos):
    path = write_csv("id,photo,ask,reply\n7,p0.jpg,How many?,3\n")
    data = ivl.from_csv(path, images=photos, image="photo", question="ask", answer="reply")
    assert (data[0].id, data[0].question, data[0].answer) == ("7", "<image>\nHow many?", "3")


def test_usual_column_names_need_no_naming(write_csv, photos):
    path = write_csv("File_Name,Question,Answer\np0.jpg,How many?,3\n")
    assert open_data(path, root=photos)[0].question == "<image>\nHow many?"


def test_several_columns_become_one_json_answer(write_csv, photos):
    path = write_csv("file,name,total\np0.jpg,Müller,12.50\np1.jpg,,3\n")
    data = ivl.from_csv(path, images=photos, question=QUESTION, answer=["name", "total"])
    assert answers(data) == ['{"name": "Müller", "total": "12.50"}', '{"name": null, "total": "3"}']


def test_a_cell_that_is_too_long_is_said_to_be(write_csv, photos):
    path = write_csv(f"file,label\np0.jpg,{'x' * 140_000}\np1.jpg,b\n")
    with pytest.raises(
        DataError, match="1 of 2 rows(.|\n)*:2: a cell of more than 131,072 characters; is a quote left"
    ):
        ivl.from_csv(path, images=photos, question=QUESTION)


def test_several_picture_columns_become_one_row(write_csv, photos):
    path = write_csv("front,back,label\np0.jpg,p1.jpg,x\n")
    data = ivl.from_csv(path, images=photos, image=["front", "back"], question=QUESTION)
    assert data[0].turns[0].text == "Image-1: <image>\nImage-2: <image>\nWhat is it?"
    assert [path.name for path in data[0].images] == ["p0.jpg", "p1.jpg"]


def test_rows_in_are_rows_out_and_listed(write_csv, photos):
    path = write_csv(
        'file;label\np0;a\ngone;b\n;c\np1; \n"p2";"d\ne"\np3;x;y\nhttp://x.org/a.png;f\np3;"g"h\n../p0;i\np3;j\n'
    )
    data = ivl.from_csv(path, images=photos, question=QUESTION, rejects="list")
    rejects = [json.loads(line) for line in (data.path.parent / "rejects.jsonl").read_text().splitlines()]
    assert answers(data) == ["a", "d\ne", "j"]
    assert [reject["where"] for reject in rejects] == [f"labels.csv:{line}" for line in (3, 4, 5, 8, 9, 10, 11)]
    reasons = ["does not exist", "'file' is empty", "'label' is empty", "3 cells in a table of 2 columns"]
    reasons += ["is on another machine", "broken CSV", "leaves the folder"]
    assert all(reason in reject["error"] for reason, reject in zip(reasons, rejects, strict=True))


def test_by_default_a_row_that_cannot_be_used_stops_it(write_csv, photos):
    path = write_csv("file,label\np0.jpg,a\ngone.jpg,b\n")
    with pytest.raises(DataError) as caught:
        ivl.from_csv(path, images=photos, question=QUESTION)
    assert str(caught.value).startswith("labels.csv: 1 of 2 rows can't be used, all in ")
    assert 'go on without (rejects="list"):\n  labels.csv:3: picture ' in str(caught.value)


def test_a_quote_that_is_never_closed_swallows_no_row_in_silence(write_csv, photos):
    path = write_csv('file,label\np0.jpg,a\np1.jpg,"b\np2.jpg,c\n')
    with pytest.raises(DataError, match="labels.csv:3: a quote is opened and never closed, up to line 4; close it"):
        ivl.from_csv(path, images=photos, question=QUESTION)


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("file,label,label\n", {}, "labels.csv:1: column 'label' twice; expected every name once; rename one"),
        ("file,lab\n", {"answer": "label"}, "no column 'label'; expected one of 'file', 'lab'"),
        ("file,label\n", {"image": "photo"}, "no column 'photo'; expected one of 'file', 'label'"),
        ("file,label\n", {"question": "ask"}, "no column 'ask' for the question; .* or a sentence that is asked"),
        ("a,label\n", {}, "no image column among 'a', 'label'; name it: image="),
        ("file,b\n", {}, "no answer column among 'file', 'b'; name it: answer="),
        ("file,label\n", {"question": None}, "no question column among 'file', 'label'; name it: question="),
        ("", {}, "no header .the file is empty.; expected column names"),
        ("file,label\n", {}, "none of 0 rows can be used"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(write_csv, photos, text, options, said):
    with pytest.raises(DataError, match=said):
        ivl.from_csv(write_csv(text), **({"images": photos, "question": QUESTION} | options))


def test_a_folder_that_is_not_there_is_refused(write_csv, tmp_path):
    path = write_csv("file,label\np0.jpg,a\n")
    with pytest.raises(DataError, match="nowhere: no folder; expected the one that picture paths start from"):
        ivl.from_csv(path, images=tmp_path / "nowhere", question=QUESTION)
    with pytest.raises(DataError, match="does not exist; expected a table"):
        ivl.from_csv(tmp_path / "gone.csv", question=QUESTION)
    with pytest.raises(DataError, match='rejects=.drop.; expected "refuse" or "list"'):
        ivl.from_csv(path, question=QUESTION, rejects="drop")


def test_a_folder_of_other_files_is_not_written_over(write_csv, photos):
    path = write_csv("file,label\np0.jpg,a\n")
    with pytest.raises(DataError, match="photos: holds other files; expected a new folder or one of an earlier"):
        ivl.from_csv(path, images=photos, question=QUESTION, to=photos)
    assert sorted(file.name for file in photos.iterdir()) == ["p0.jpg", "p1.jpg", "p2.jpg", "p3.jpg", "sub"]


def test_an_excel_file(tmp_path, photos):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.title = "Labels"
    for cells in (["file", "label", "n", "day"], ["p0.jpg", "a", 3.0, datetime.datetime(2024, 5, 1)], [], ["p1", "b"]):
        book.active.append(cells)
    book.create_sheet("Notes")
    book.save(tmp_path / "labels.xlsx")
    columns = ["label", "n", "day"]
    data = ivl.from_csv(tmp_path / "labels.xlsx", images=photos, question=QUESTION, answer=columns)
    assert answers(data)[0] == '{"label": "a", "n": 3, "day": "2024-05-01"}'
    assert data[1].extra["source"] == "labels.xlsx:4"
    assert "xlsx, sheet 'Labels', the first of 2 sheets" in repr(data)


def test_an_excel_file_is_read_as_it_is_shown(tmp_path, photos):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for sheet, label in ((book.active, "old"), (book.create_sheet("Now"), 0.12345678901234567)):
        sheet.append(["file", "label"])
        sheet.append(["p0.jpg", label])
    book.worksheets[0].sheet_state, book.active = "hidden", 1
    book.save(tmp_path / "labels.xlsx")
    data = ivl.from_csv(tmp_path / "labels.xlsx", images=photos, question=QUESTION, answer="label")
    assert answers(data) == ["0.123456789012346"] and "xlsx, sheet 'Now'" in repr(data)
    sheet = book.worksheets[1]
    sheet["B2"].value, sheet["B2"].number_format = 12, "00000"
    book.save(tmp_path / "labels.xlsx")
    assert answers(ivl.from_csv(tmp_path / "labels.xlsx", images=photos, question=QUESTION, answer="label")) == [
        "00012"
    ]


def test_an_excel_file_that_is_none_is_refused(write_csv):
    pytest.importorskip("openpyxl")
    with pytest.raises(
        DataError, match="labels.xlsx: can't be read .*; expected an Excel file; save it anew or as CSV"
    ):
        ivl.from_csv(write_csv("file,label\n", "labels.xlsx"), question=QUESTION)


def test_a_page_of_a_pdf_becomes_a_picture(tmp_path, write_csv, draw_picture):
    pytest.importorskip("pypdfium2")
    pages = [draw_picture(150, 300, seed=seed) for seed in range(2)]
    pages[0].save(tmp_path / "one.pdf", resolution=150)
    pages[0].save(tmp_path / "two.pdf", save_all=True, append_images=pages[1:], resolution=150)
    path = write_csv("file,label\none.pdf,a\ntwo.pdf#page=2,b\ntwo.pdf,c\ntwo.pdf#page=3,d\nlabels.csv#page=1,e\n")
    data = ivl.from_csv(path, question=QUESTION, rejects="list")
    assert answers(data) == ["a", "b"]
    assert [record.images[0].suffix for record in data] == [".png", ".png"]
    errors = (data.path.parent / "rejects.jsonl").read_text().splitlines()
    assert "two.pdf has 2 pages; expected the page, two.pdf#page=1" in errors[0]
    assert "page '3' of " in errors[1] and "which is no PDF; remove #page=" in errors[2]


def test_a_page_of_a_tiff_becomes_a_picture(tmp_path, write_csv, draw_picture):
    first, second = (draw_picture(150, 300, seed=seed) for seed in range(2))
    first.save(tmp_path / "two.tif", save_all=True, append_images=[second])
    path = write_csv("file,label\ntwo.tif#page=2,b\ntwo.tif#page=3,c\n")
    data = ivl.from_csv(path, question=QUESTION, rejects="list")
    assert answers(data) == ["b"] and open_image(data[0].images[0]).tobytes() == second.tobytes()
    assert "page '3' of " in (error := (data.path.parent / "rejects.jsonl").read_text())
    assert "which has 2; expected 1 to 2" in error


def test_heic_in_a_table(tmp_path, write_csv, draw_picture):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.from_pillow(draw_picture(64, 64)).save(tmp_path / "IMG_1.HEIC")
    data = ivl.from_csv(write_csv("file,label\nIMG_1,a\n"), question=QUESTION)
    assert data[0].images == (tmp_path / "IMG_1.HEIC",)


def test_class_folders_work_alone(tmp_path, draw_picture):
    for number, name in enumerate(("cat", "dog", "dog/more")):
        (tmp_path / "animals" / name).mkdir(parents=True, exist_ok=True)
        draw_picture(30 + number, 30).save(tmp_path / "animals" / name / "1.jpg")
    (tmp_path / "animals" / ".DS_Store").write_text("")
    data = ivl.from_folder(tmp_path / "animals", question="Which animal?")
    assert (answers(data), data[0].question) == (["cat", "dog", "dog"], "<image>\nWhich animal?")
    assert open_data(tmp_path / "animals")[0].question == "<image>\nWhat is it?"
    assert open_data(tmp_path / "animals_ivlkit").path.name == "meta.json"
    (tmp_path / "animals" / "readme.txt").write_text("x")
    (tmp_path / "animals" / "cat" / "notes.txt").write_text("x")
    with pytest.raises(
        DataError, match="2 of 5 rows(.|\n)*cat/notes.txt: no picture by its name(.|\n)*lies beside the"
    ):
        ivl.from_folder(tmp_path / "animals")


def test_a_folder_that_cannot_be_read_is_named_and_not_the_one_to_write(tmp_path, draw_picture, monkeypatch):
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        draw_picture(40, 40).save(tmp_path / "pets" / name / "1.png")
    iterate = Path.iterdir

    def refusing(folder):
        if folder.name == "dog":
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return iterate(folder)

    monkeypatch.setattr(Path, "iterdir", refusing)
    (tmp_path / "labels.csv").write_text("file,label\ncat/1.png,a\ndog/1,b\n")
    said = r"pets/dog: can't be read \(Permission denied\); expected one that can be; change its permissions"
    with pytest.raises(DataError, match=said):
        ivl.from_csv(tmp_path / "labels.csv", images=tmp_path / "pets", question=QUESTION)
    with pytest.raises(DataError, match=said):
        ivl.from_folder(tmp_path / "pets")
    monkeypatch.undo()
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file/rows: can't be written \(Not a directory\); .*another folder with to="):
        ivl.from_folder(tmp_path / "pets", to=tmp_path / "file" / "rows")


def test_linked_classes_and_pictures_are_rows_too(tmp_path, draw_picture):
    for number, name in enumerate(("animals/cat", "dogs/young")):
        (tmp_path / name).mkdir(parents=True)
        draw_picture(30 + number, 30).save(tmp_path / name / "1.jpg")
    (tmp_path / "animals" / "dog").symlink_to(tmp_path / "dogs")
    (tmp_path / "dogs" / "young" / "back").symlink_to(tmp_path / "dogs")
    assert answers(ivl.from_folder(tmp_path / "animals")) == ["cat", "dog"]
    (tmp_path / "animals" / "cat" / "2.jpg").symlink_to(tmp_path / "gone.jpg")
    with pytest.raises(DataError, match="1 of 3 rows(.|\n)*cat/2.jpg: picture .* does not exist"):
        ivl.from_folder(tmp_path / "animals")


@pytest.fixture
def fruit(tmp_path, draw_picture):
    """fruit/{train,valid,test}/{apple,lime}: 12, 4 and 4 pictures."""
    for part, count in (("train", 6), ("valid", 2), ("test", 2)):
        for place, name in enumerate(("apple", "lime")):
            (tmp_path / "fruit" / part / name).mkdir(parents=True)
            for number in range(count):
                seed = number + 10 * place + 31 * count
                draw_picture(50 + seed, 40, seed=seed).save(tmp_path / "fruit" / part / name / f"{number}.png")
    return tmp_path / "fruit"


def test_a_folder_of_split_names_is_kept_split_and_never_an_answer(fruit):
    train = ivl.from_folder(fruit, question="Which fruit?")
    assert answers(train) == ["apple"] * 6 + ["lime"] * 6
    for split, rows in (("validation", 4), ("test", 4), ("all", 20)):
        data = ivl.open_data(fruit, split=split)
        assert (len(data), {record.answer for record in data}) == (rows, {"apple", "lime"})
    assert {record.images[0].parts[-3] for record in ivl.open_data(fruit, split="validation")} == {"valid"}


def test_a_conversion_keeps_the_split_of_a_folder_whatever_shares_are_asked_for(fruit, tmp_path):
    done = convert(fruit, tmp_path / "out", shares={"train": 0.5, "test": 0.5})
    assert done.rows == {"train": 12, "test": 4, "validation": 4}
    assert "split into test, train, valid" in done.detected
    assert not (tmp_path / "fruit.split.csv").exists()


def test_folders_of_a_set_with_boxes_are_no_classes(fruit):
    for part in ("train", "valid", "test"):
        (fruit / part / "apple").rename(fruit / part / "images")
        (fruit / part / "lime").rename(fruit / part / "labels")
    with pytest.raises(DataError, match="fruit: folders 'images', 'labels' are those of a set with boxes or masks"):
        ivl.from_folder(fruit)


@pytest.mark.parametrize("names", [("train_images", "test_images"), ("Train2017", "val2017"), ("JPEGImages", "ann")])
def test_folders_called_after_parts_and_kinds_of_files_are_no_classes(names, draw_picture, tmp_path):
    for name in names:
        (tmp_path / "set" / name).mkdir(parents=True)
        draw_picture().save(tmp_path / "set" / name / "1.png")
    with pytest.raises(
        DataError, match="or parts of a split; expected one a class; .* call parts train, valid and test"
    ):
        ivl.from_folder(tmp_path / "set")
    (tmp_path / "set" / names[0]).rename(tmp_path / "set" / "with_masks")  # a face with one
    assert "with_masks" in answers(ivl.from_folder(tmp_path / "set"))


def test_a_table_without_a_header_is_refused(write_csv):
    path = write_csv("p0.jpg,What?,red\np1.jpg,What?,blue\n")
    with pytest.raises(
        DataError, match="labels.csv:1: the first line names a picture, 'p0.jpg'; expected column names"
    ):
        ivl.from_csv(path, image="p0.jpg", question=QUESTION, answer="red")


def test_a_nan_of_a_row_in_memory_is_an_empty_cell(photos, tmp_path):
    row, nan = {"image": open_image(photos / "p0.jpg"), "answer": "a", "n": 3}, float("nan")
    how = {"to": tmp_path / "out", "question": QUESTION, "rejects": "list"}
    assert answers(from_dataset([row, row | {"answer": nan}], **how)) == ["a"]
    assert "the cell 'answer' is empty" in (tmp_path / "out" / "rejects.jsonl").read_text()
    data = from_dataset([row | {"n": nan, "system": nan}], answer=["answer", "n"], **how)
    assert answers(data) == ['{"answer": "a", "n": null}'] and "n" not in data[0].extra


@pytest.mark.parametrize("name", ["Training", "VAL", "dev", "testing"])
def test_other_names_of_parts_are_known(fruit, name):
    (fruit / "valid").rename(fruit / name)
    assert {record.answer for record in ivl.open_data(fruit, split="all")} == {"apple", "lime"}


def test_pictures_of_a_part_without_classes_are_listed(fruit, draw_picture):
    draw_picture().save(fruit / "train" / "stray.png")
    with pytest.raises(DataError, match="train/stray.png: lies beside .*; expected fruit/train/CLASS/stray.png"):
        ivl.from_folder(fruit)
    for folder in fruit.glob("*/*/"):
        shutil.rmtree(folder)
    with pytest.raises(DataError, match="no class folders in those of the split; expected one a class, fruit/test/cat"):
        ivl.from_folder(fruit)


def test_parts_beside_other_folders_are_refused_unless_they_are_classes(fruit, draw_picture):
    (fruit / "more" / "lime").mkdir(parents=True)
    with pytest.raises(DataError, match="'test', 'train', 'valid' with folders in them beside 'more'; expected parts"):
        ivl.from_folder(fruit)
    for name in ("train", "car"):  # a train as one drives
        (fruit.parent / "vehicles" / name).mkdir(parents=True)
        draw_picture(seed=len(name)).save(fruit.parent / "vehicles" / name / "1.png")
    assert answers(ivl.from_folder(fruit.parent / "vehicles")) == ["car", "train"]


def test_a_folder_without_classes_is_refused(photos):
    with pytest.raises(DataError, match="sub: no sub-folders; expected one a class, sub/cat/1.jpg"):
        open_data(photos / "sub")
    (photos / "sub" / "metadata.jsonl").touch()
    for folder in (".", "images"):
        (photos / "sub" / folder).mkdir(exist_ok=True)
        with pytest.raises(DataError, match="or name the table, .*sub/metadata.jsonl"):
            open_data(photos / "sub")


class Labels:
    """As `datasets.ClassLabel`."""

    def int2str(self, number):
        return ["cat", "dog"][number]


class Dataset(list):
    """As `datasets.Dataset`: rows, column names, features."""

    builder_name = "pets"

    def __init__(self, rows, features):
        super().__init__(rows)
        self.features, self.column_names = features, list(features)


def test_a_dataset_object_with_pictures_in_memory(tmp_path, draw_picture, photos):
    rows = [
        {"image": draw_picture(30, 20), "label": 1},
        {"image": {"bytes": (photos / "p0.jpg").read_bytes(), "path": None}, "label": 0},
        {"image": {"bytes": None, "path": "gone.jpg"}, "label": 0},
        {"image": draw_picture(30, 20), "label": -1},  # how test splits say that there is none
    ]
    dataset = Dataset(rows, {"image": object(), "label": Labels()})
    data = from_dataset(dataset, to=tmp_path / "pets", question=QUESTION, rejects="list")
    assert answers(data) == ["dog", "cat"]
    assert [path.suffix for record in data for path in record.images] == [".png", ".jpg"]
    rejects = (tmp_path / "pets" / "rejects.jsonl").read_text()
    assert "pets: row 2: picture " in rejects and "pets: row 3: the cell 'label' is empty" in rejects


def test_a_question_beside_a_dataset_that_has_its_own_is_refused(tmp_path):
    messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    with pytest.raises(DataError, match="dataset: row 0: have their own questions; expected no question='Why'"):
        from_dataset([{"messages": messages}], to=tmp_path / "chat", question="Why")


def test_a_dataset_object_with_messages(tmp_path, draw_picture):
    content = [{"type": "image"}, {"type": "text", "text": "Q"}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "A"}]
    data = from_dataset([{"messages": messages, "images": [draw_picture(9, 9)]}], to=tmp_path / "chat")
    assert (data[0].turns[0].text, len(data[0].images)) == ("<image>\nQ", 1)


def test_a_list_is_no_answer_unless_the_answer_is_json(tmp_path, draw_picture):
    rows = [{"image": draw_picture(9, 9), "question": "Q", "answer": answer} for answer in (["a", "b"], {"x": 1}, 5)]
    data = from_dataset(rows, to=tmp_path / "one", rejects="list")
    rejects = [json.loads(line)["error"] for line in (tmp_path / "one" / "rejects.jsonl").read_text().splitlines()]
    assert answers(data) == ["5"]
    assert [reject.split("; ")[0] for reject in rejects] == [
        "dataset: row 0: the cell 'answer' is a list",
        "dataset: row 1: the cell 'answer' is a dict",
    ]
    data = from_dataset(rows, to=tmp_path / "json", answer=["answer"])
    assert answers(data) == ['{"answer": ["a", "b"]}', '{"answer": {"x": 1}}', '{"answer": 5}']


def test_what_json_has_no_word_for_is_a_reject(tmp_path, draw_picture):
    rows = [{"image": draw_picture(9, 9), "question": "Q", "answer": answer} for answer in (datetime.date.today(), "a")]
    data = from_dataset(rows, to=tmp_path / "json", answer=["answer"], rejects="list")
    assert answers(data) == ['{"answer": "a"}']
    assert "dataset: row 0: Object of type date" in (tmp_path / "json" / "rejects.jsonl").read_text()


def test_a_dictionary_of_splits_is_refused(tmp_path):
    with pytest.raises(DataError, match="a dictionary of 'train', 'test'; expected one split; choose it"):
        from_dataset({"train": [], "test": []}, to=tmp_path / "x")


def test_the_mark_of_an_encoding_is_no_part_of_a_name(write_csv, photos):
    path = write_csv("file,label\np0.jpg,a\n")
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    assert len(ivl.from_csv(path, images=photos, question=QUESTION)) == 1


def test_columns_named_as_fields_of_other_formats_refuse_no_row(write_csv, photos):
    path = write_csv("image,question,answer,objects,audio\np0.jpg,Q,A,3,no\n")
    (record,) = ivl.from_csv(path, images=photos)
    assert record.answer == "A" and record.extra.keys() == {"answer", "source"}


def test_a_list_of_pictures_in_one_field_becomes_one_row(write_csv, photos):
    rows = [{"image": ["p0.jpg", "p1.jpg"], "question": "Q", "answer": "A"}, {"image": [], "question": "Q"}]
    data = ivl.from_csv(write_csv(json.dumps(rows[:1]), "a.json"), images=photos)
    assert data[0].question == "Image-1: <image>\nImage-2: <image>\nQ"
    assert [path.name for path in data[0].images] == ["p0.jpg", "p1.jpg"]
    with pytest.raises(DataError, match="b.json: row 2: the cell 'image' is empty"):
        ivl.from_csv(write_csv(json.dumps(rows), "b.json"), images=photos)


@pytest.mark.parametrize("clip", ["[0, 1]", ""])
def test_a_clip_of_a_table_is_the_clip_of_its_video(clip, write_csv, tmp_path, draw_picture):
    frames = [draw_picture(40, 30, seed=number) for number in range(4)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=500)
    path = write_csv(f'video,question,answer,clip\na.gif,Q,A,"{clip}"\n')
    assert ivl.from_csv(path, video="video")[0].video.clip == ((0.0, 1.0) if clip else None)


def test_a_column_system_is_the_system_message_of_its_row(write_csv, photos):
    path = write_csv("image,question,answer,system\np0.jpg,Q,A,Be brief.\np1.jpg,Q,A, \n")
    first, second = ivl.from_csv(path, images=photos)
    assert (first.turns[0], len(first.turns)) == (Turn("system", "Be brief."), 3)
    assert [turn.role for turn in second.turns] == ["user", "assistant"]
    asked, _ = questions_of(path, root=photos)
    assert [record.turns for record in asked] == [first.turns[:2], second.turns[:1]]


def test_a_column_system_that_is_the_answer_is_no_system_message(write_csv, photos):
    path = write_csv("image,system\np0.jpg,Linux\n")
    (record,) = ivl.from_csv(path, images=photos, question=QUESTION, answer="system")
    assert [(turn.role, turn.text) for turn in record.turns][1:] == [("assistant", "Linux")]


def test_a_column_in_other_capitals_is_not_asked_as_a_sentence(write_csv, photos):
    path = write_csv("image,Full question,answer\np0.jpg,Q,A\n")
    with pytest.raises(DataError, match="no column 'full question' for the question; expected one of 'image', 'Full"):
        ivl.from_csv(path, images=photos, question="full question")


@pytest.mark.parametrize("more", [{}, {"images": ["p0.jpg"], "image": None}])
def test_json_lines_with_columns_name_the_door_that_takes_them(write_csv, photos, more):
    row = {"image": "p0.jpg", "question": "Q", "answer": "A"} | more
    path = write_csv(json.dumps(row) + "\n", "a.jsonl")
    with pytest.raises(DataError, match="a.jsonl:1: no `conversations`; .* it has `question`.*: take ivl.from_csv or"):
        open_data(path, root=photos)[0]
    (record,) = ivl.from_csv(path, images=photos, image="images" if more else None)
    assert (record.question, record.answer, record.images) == ("<image>\nQ", "A", (photos / "p0.jpg",))


def test_the_accepted_answers_of_a_json_table_are_kept(write_csv, photos):
    row = {"image": "p0.jpg", "question": "Q", "answer": "A", "answers": ["A", "B"]}
    (record,) = ivl.from_csv(write_csv(json.dumps([row]), "a.json"), images=photos)
    assert accepted_truth(record) == ("A", "B")
