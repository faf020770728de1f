"""Small twins of each benchmark's own files, in the layout its makers give out, and scores worked out by hand."""

import json
from types import SimpleNamespace

import pytest
from PIL import Image

from ivlkit.cli import main
from ivlkit.errors import DataError
from ivlkit.evaluation.benchmarks import BENCHMARKS, describe, open_benchmark
from ivlkit.evaluation.metrics import CORPUS_METRICS, METRICS
from ivlkit.evaluation.report import Report
from ivlkit.models import chat

SHORT = "Answer the question using a single word or phrase."


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def draw(folder, *names):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (112, 112), (40 * number, 90, 160)).save(folder / name)


def textvqa_entry(number, image_id, answers=None):
    entry = {"question": "what brand is it?", "image_id": image_id, "image_classes": ["Camera"], "image_width": 112}
    entry |= {"question_id": 34600 + number, "set_name": "val", "question_tokens": ["what", "brand", "is", "it"]}
    return entry | ({"answers": answers} if answers else {})


@pytest.fixture
def textvqa(tmp_path):
    answers = [["nokia"] * 3 + ["sony"] * 7, ["the Canon"] * 10]
    data = [textvqa_entry(number, f"a{number}", answers[number]) for number in range(2)]
    head = {"dataset_type": "val", "dataset_name": "textvqa", "dataset_version": "0.5.1"}
    write(tmp_path / "TextVQA_0.5.1_val.json", head | {"data": data})
    write(tmp_path / "TextVQA_0.5.1_test.json", head | {"data": [textvqa_entry(n, f"t{n}") for n in range(2)]})
    draw(tmp_path, "train_images/a0.jpg", "train_images/a1.jpg", "test_images/t0.jpg", "test_images/t1.jpg")
    return tmp_path


def docvqa_entry(number, **fields):
    entry = {"questionId": 49150 + number, "question": "What is the date?", "image": f"documents/page_{number}.png"}
    return entry | {"docId": number, "ucsf_document_id": "page", "ucsf_document_page_no": str(number)} | fields


@pytest.fixture
def docvqa(tmp_path):
    head = {"dataset_name": "SP-DocVQA", "dataset_version": "1.0", "dataset_split": "val"}
    known = {"data_split": "val", "question_types": ["handwritten"], "answers": ["May 4", "4 May"]}
    rows = [docvqa_entry(number, **known) for number in range(2)]
    write(tmp_path / "spdocvqa_qas" / "val_v1.0_withQT.json", head | {"data": rows})
    hidden = [docvqa_entry(number, data_split="test") for number in range(2)]
    write(tmp_path / "spdocvqa_qas" / "test_v1.0.json", head | {"data": hidden})
    draw(tmp_path / "spdocvqa_images", "documents/page_0.png", "documents/page_1.png")
    return tmp_path


@pytest.fixture
def chartqa(tmp_path):
    folder = tmp_path / "ChartQA Dataset" / "test"
    human = [{"imgname": "1.png", "query": "How many?", "label": label} for label in ("100", "Yes")]
    write(folder / "test_human.json", human)
    write(folder / "test_augmented.json", [{"imgname": "2.png", "query": "What share?", "label": "0.5"}])
    draw(folder / "png", "1.png", "2.png")
    return tmp_path


@pytest.fixture
def pope(tmp_path):
    labels = {"random": "yn", "popular": "yy", "adversarial": "nn"}
    for part, answers in labels.items():
        rows = (
            {"question_id": number + 1, "image": "COCO_val2014_000000310196.png"}
            | {"text": "Is there a snowboard in the image?", "label": {"y": "yes", "n": "no"}[answer]}
            for number, answer in enumerate(answers)
        )
        write(tmp_path / "coco" / f"coco_pope_{part}.json", lines(*rows))
    draw(tmp_path / "val2014", "COCO_val2014_000000310196.png")
    return tmp_path


@pytest.fixture
def refcoco(tmp_path):
    row = {"image": "data/coco/train2014/COCO_train2014_000000581857.png", "sent": "left cup", "height": 480}
    row |= {"bbox": [64.0, 48.0, 320.0, 240.0], "width": 640}
    for name in BENCHMARKS["refcoco"].splits["all"]:
        write(tmp_path / "refcoco" / f"{name}.jsonl", lines(row))
    draw(tmp_path / "coco" / "train2014", "COCO_train2014_000000581857.png")
    return tmp_path / "refcoco"


CAPTIONS = [["a cat on a mat", "the cat sits"], ["two dogs run", "dogs in grass"]]


@pytest.fixture
def coco(tmp_path):
    names = [f"COCO_val2014_00000000000{number}.png" for number in range(2)]
    images = [{"id": number, "file_name": name, "height": 112, "width": 112} for number, name in enumerate(names)]
    said = [(number, text) for number, texts in enumerate(CAPTIONS) for text in texts]
    annotations = [{"image_id": number, "id": 9 - at, "caption": text} for at, (number, text) in enumerate(said)]
    folder = tmp_path / "annotations"
    write(folder / "captions_val2014.json", {"info": {}, "images": images, "licenses": [], "annotations": annotations})
    write(folder / "image_info_test2014.json", {"info": {}, "images": images, "licenses": [], "categories": []})
    karpathy = [{"image": f"val2014/{name}", "caption": CAPTIONS[number]} for number, name in enumerate(names)]
    write(folder / "coco_karpathy_test.json", karpathy)
    draw(tmp_path / "val2014", *names)
    return tmp_path


@pytest.fixture
def answer(monkeypatch, tiny_vlm):
    """`answer(task, replies)` → the report of a model that gives these replies."""

    def scripted(task, replies, **options):
        pairs = [(number, SimpleNamespace(text=text, tokens=())) for number, text in enumerate(replies)]
        monkeypatch.setattr("ivlkit.evaluation.evaluate.iterate_replies", lambda *_, **__: [pairs])
        return task.evaluate(tiny_vlm, progress=False, **options)

    return scripted


def asked(task):
    """The question of its first row as the model gets it, behind its picture."""
    placeholder, _, text = task[0].question.partition("\n")
    assert placeholder == "<image>" and len(task[0].images) == 1
    return text


class TestTextVqa:
    def test_it_is_asked_and_scored_as_the_release_does(self, textvqa, answer):
        task = open_benchmark("textvqa", textvqa)
        assert asked(task) == f"what brand is it? {SHORT}"
        assert task[0].images == (textvqa / "train_images" / "a0.jpg",)
        assert (task[0].id, task[0].answer, len(task[0].extra["answers"])) == (34600, "sony", 10)
        found = task.scores(answer(task, ["Nokia.", "canon"]))
        assert found.measured == {"val": pytest.approx(100 * (0.9 + 1) / 2)}
        assert found.published == {"val": {"26b": 80.6, "4b": 72.9, "2b": 70.5}}

    def test_the_test_split_is_answered_for_the_server(self, textvqa, answer, tmp_path):
        task = open_benchmark("textvqa", textvqa, split="test")
        assert not task.has_truth and task[0].images[0].parent.name == "test_images"
        report = answer(task, ["Nokia", "é"])
        assert (report.metric, report.score) == ("unscored", 0.0)
        written = json.loads(task.save_submission(report, tmp_path / "s.json").read_text(encoding="utf-8"))
        assert written == [{"question_id": 34600, "answer": "Nokia"}, {"question_id": 34601, "answer": "é"}]
        with pytest.raises(DataError, match="textvqa test: only the benchmark's server has the truths"):
            task.scores(report)


class TestDocVqa:
    def test_any_accepted_answer_counts_by_its_edits(self, docvqa, answer):
        task = open_benchmark("docvqa", docvqa)
        assert asked(task) == f"What is the date? {SHORT}"
        report = answer(task, ["4 may", "May 14"])
        assert task.scores(report).measured == {"val": pytest.approx(100 * (1 + 5 / 6) / 2)}
        assert report.by("question_types") == {'["handwritten"]': (pytest.approx(11 / 12), 2)}

    def test_another_metric_is_no_published_score(self, docvqa, answer):
        task = open_benchmark("docvqa", docvqa)
        with pytest.raises(DataError, match="docvqa val: a report scored by exact_match; expected anls"):
            task.scores(answer(task, ["4 may", "May 14"], metric="exact_match"))

    def test_the_older_archives_are_read_too(self, tmp_path):
        rows = {"dataset_name": "docvqa", "data": [docvqa_entry(0, answers=["May 4"])]}
        write(tmp_path / "val" / "val_v1.0.json", rows)
        draw(tmp_path / "val", "documents/page_0.png")
        assert open_benchmark("docvqa", tmp_path)[0].where == "val_v1.0.json: data[0]"

    def test_a_submission_has_the_keys_of_its_server(self, docvqa, answer, tmp_path):
        task = open_benchmark("docvqa", docvqa, split="test")
        path = task.save_submission(answer(task, ["a", "b"]), tmp_path / "s.json")
        assert json.loads(path.read_text())[1] == {"questionId": 49151, "answer": "b"}


class TestInfoVqa:
    def test_it_is_docvqa_with_other_names(self, tmp_path, answer):
        entry = {
            "questionId": 98313,
            "question": "How many?",
            "image_local_name": "37313.jpeg",
            "image_url": "http://x",
        }
        entry |= {"answers": ["20 %", "20%"], "answer_type": ["single span"], "data_split": "val"}
        head = {"dataset_name": "infographicVQA", "dataset_version": "1.0", "dataset_split": "val"}
        write(tmp_path / "infographicsVQA_val_v1.0_withQT.json", head | {"data": [entry]})
        draw(tmp_path / "infographicsvqa_images", "37313.jpeg")
        task = open_benchmark("infovqa", tmp_path)
        assert asked(task) == f"How many? {SHORT}" and task.benchmark.max_tiles == 24
        report = answer(task, ["20%"])
        assert (report.score, report.rows[0].extra["answer_type"]) == (1.0, ["single span"])


class TestChartQa:
    def test_the_score_is_the_mean_of_both_sets(self, chartqa, answer):
        task = open_benchmark("chartqa", chartqa)
        assert asked(task) == f"How many? {SHORT}"
        found = task.scores(answer(task, ["104.9", "no", "50%"]))
        assert found.measured == {"human": 50.0, "augmented": 100.0, "mean": 75.0}
        assert found.published["mean"] == {"26b": 83.8, "4b": 81.0, "2b": 73.3}
        assert found.intervals["human"] == (50.0, 50.0)  # one picture: no other could have been drawn
        assert repr(found).splitlines()[2].split() == ["human", "50.0", "50.0", "–", "50.0", "73.6", "68.8", "54.9"]

    def test_a_reply_6_percent_off_is_wrong_whatever_it_is_divided_by(self, chartqa, answer):
        report = answer(open_benchmark("chartqa", chartqa), ["106", "Yes", "0.5"])
        assert [row.score for row in report.rows] == [0.0, 1.0, 1.0]


class TestPope:
    def test_the_score_is_the_mean_f1_of_the_three_sets(self, pope, answer):
        task = open_benchmark("pope", pope)
        assert asked(task) == f"Is there a snowboard in the image?\n{SHORT}"
        found = task.scores(answer(task, ["Yes", "Yes", "Yes", "No", "No", "No, there is not."]))
        assert found.measured == pytest.approx(
            {"random": 200 / 3, "popular": 200 / 3, "adversarial": 0, "mean": 400 / 9}
        )
        assert found.intervals == {} and "–" in repr(found)

    def test_another_label_than_yes_or_no_is_refused(self, pope):
        row = {"question_id": 1, "image": "x.jpg", "text": "Is there?", "label": "maybe"}
        write(pope / "coco" / "coco_pope_popular.json", lines(row))
        with pytest.raises(DataError, match=r"coco_pope_popular\.json:1: `label` is 'maybe'; expected yes or no"):
            open_benchmark("pope", pope)


class TestRefCoco:
    def test_pixels_become_thousandths_and_half_an_overlap_is_enough(self, refcoco, answer):
        task = open_benchmark("refcoco", refcoco, split="refcoco+_testA")
        assert asked(task) == (
            "Please provide the bounding box coordinate of the region this sentence describes: <ref>left cup</ref>"
        )
        assert task[0].answer == "[100.000000, 100.000000, 500.000000, 500.000000]"
        for reply, score in [("<box>[[100, 100, 300, 500]]</box>", 100.0), ("[[100, 100, 299, 500]]", 0.0), ("?", 0.0)]:
            assert task.scores(answer(task, [reply])).measured == {"refcoco+_testA": score}

    @pytest.mark.parametrize("change", [{"bbox": [1, 2, 3]}, {"bbox": [1, 2, 3, "4"]}, {"width": 0}])
    def test_a_box_that_is_none_is_refused(self, refcoco, change):
        path = refcoco / "refcoco_val.jsonl"
        write(path, lines(json.loads(path.read_text()) | change))
        with pytest.raises(DataError, match=r"refcoco_val\.jsonl:1: (`bbox` is|a picture of 0 x 480 px)"):
            open_benchmark("refcoco", refcoco, split="refcoco_val")

    def test_all_eight_sets_stand_beside_the_published_ones(self, refcoco, answer):
        task = open_benchmark("refcoco", refcoco)
        found = task.scores(answer(task, ["[[100, 100, 500, 500]]"] * 7 + [""]))
        assert len(found.measured) == 9 and found.measured["mean"] == 87.5
        assert found.published["refcocog_test"] == {"26b": 89.3, "4b": 84.6, "2b": 74.9}
        assert found.published["mean"] == {"26b": 88.8, "4b": 84.4, "2b": 75.8}


class TestCocoCaptions:
    @pytest.mark.parametrize("split", ["karpathy_test", "val2014"])
    def test_both_layouts_give_the_same_rows(self, coco, split, answer):
        task = open_benchmark("coco_captions", coco, split=split)
        assert asked(task) == "Provide a one-sentence caption for the provided image."
        assert [(record.id, record.extra["answers"]) for record in task] == [
            (number, tuple(texts)) for number, texts in enumerate(CAPTIONS)
        ]

    def test_the_score_is_cider_times_100(self, coco, answer):
        cider = pytest.importorskip("pycocoevalcap.cider.cider")
        task = open_benchmark("coco_captions", coco)
        replies = ["a cat sits on the mat", "dogs run in grass"]
        expected, _ = cider.Cider().compute_score(dict(enumerate(CAPTIONS)), {n: [r] for n, r in enumerate(replies)})
        report = answer(task, replies)
        assert task.scores(report).measured == {"karpathy_test": pytest.approx(100 * expected)}
        assert '"min_new_tokens": 8' in report.details["generation"]

    def test_a_submission_names_pictures_by_number(self, coco, answer, tmp_path):
        task = open_benchmark("coco_captions", coco, split="test2014", images=coco / "val2014")
        path = task.save_submission(answer(task, ["a cat", "a dog"]), tmp_path / "s.json")
        assert json.loads(path.read_text()) == [
            {"image_id": 0, "caption": "a cat"},
            {"image_id": 1, "caption": "a dog"},
        ]

    def test_a_picture_without_a_caption_is_refused(self, coco):
        path = coco / "annotations" / "captions_val2014.json"
        content = json.loads(path.read_text())
        write(path, content | {"annotations": content["annotations"][:2]})
        with pytest.raises(DataError, match=r"images\[1\]: no caption of picture 1"):
            open_benchmark("coco_captions", coco, split="val2014")


class TestOpening:
    def test_missing_files_are_named_with_what_to_get(self, tmp_path):
        with pytest.raises(DataError, match=r"no val_v1.0_withQT.json or val_v1.0.json in .*; get the annotations and"):
            open_benchmark("docvqa", tmp_path)

    def test_missing_pictures_are_counted(self, docvqa):
        (docvqa / "spdocvqa_images" / "documents" / "page_1.png").unlink()
        said = "docvqa val: 1 of 2 pictures are missing, first documents/page_1.png; looked in .*; get the annotations"
        with pytest.raises(DataError, match=said):
            open_benchmark("docvqa", docvqa)

    def test_a_picture_outside_of_the_folder_is_refused(self, docvqa):
        path = docvqa / "spdocvqa_qas" / "val_v1.0_withQT.json"
        write(path, {"data": [docvqa_entry(0, answers=["x"], image="../../secret.png")]})
        with pytest.raises(DataError, match=r"data\[0\]: '../../secret.png' leaves the folder"):
            open_benchmark("docvqa", docvqa)

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ("{", "broken JSON"),
            ("[]", "a list; expected the benchmark's file"),
            ('{"rows": []}', "no list `data`"),
            ('{"data": []}', "hold no questions"),
            ('{"data": [3]}', r"data\[0\]: a int; expected an object"),
            ('{"data": [{"questionId": true}]}', r"data\[0\]: `questionId` is True"),
            ('{"data": [{"questionId": 1, "answers": ["a", 2]}]}', r"data\[0\]: `answers` is \['a', 2\]"),
        ],
    )
    def test_a_broken_file_is_named_with_its_place(self, docvqa, content, said):
        write(docvqa / "spdocvqa_qas" / "val_v1.0_withQT.json", content)
        with pytest.raises(DataError, match=said):
            open_benchmark("docvqa", docvqa)

    def test_a_placeholder_in_a_question_is_refused_before_any_is_asked(self, docvqa):
        entry = docvqa_entry(0, answers=["x"]) | {"question": "What is <image>?"}
        write(docvqa / "spdocvqa_qas" / "val_v1.0_withQT.json", {"data": [entry]})
        with pytest.raises(DataError, match=r'data\[0\]: "<image>" in a question would stand for a second picture'):
            open_benchmark("docvqa", docvqa)

    def test_a_file_with_some_answers_missing_is_refused(self, docvqa):
        rows = [docvqa_entry(0, answers=["x"]), docvqa_entry(1)]
        write(docvqa / "spdocvqa_qas" / "val_v1.0_withQT.json", {"data": rows})
        with pytest.raises(DataError, match=r"data\[1\] has no answer, others have"):
            open_benchmark("docvqa", docvqa)

    def test_fewer_rows_are_drawn_by_seed_and_are_no_submission(self, refcoco, docvqa, answer, tmp_path):
        draws = [
            [record.where for record in open_benchmark("refcoco", refcoco, rows=4, seed=seed)] for seed in (0, 0, 1)
        ]
        assert draws[0] == draws[1] != draws[2] and len(set(draws[0])) == 4
        task = open_benchmark("docvqa", docvqa, rows=1)
        assert repr(task) == "Task(docvqa val: 1 of 2 rows, anls, at most 18 tiles)"
        with pytest.raises(DataError, match="docvqa val: 1 of 2 rows; a server wants all"):
            task.save_submission(answer(task, ["x"]), tmp_path / "s.json")
        with pytest.raises(DataError, match="rows=3 of 2; expected 1 to 2"):
            open_benchmark("docvqa", docvqa, rows=3)

    def test_a_name_or_split_that_is_none_is_refused(self, docvqa):
        for act in (lambda: open_benchmark("docqva", docvqa), lambda: describe("docqva")):
            with pytest.raises(DataError, match="benchmark 'docqva'; expected one of textvqa, docvqa"):
                act()
        with pytest.raises(DataError, match="docvqa: split 'train'; expected one of val, test"):
            open_benchmark("docvqa", docvqa, split="train")

    def test_a_report_of_other_rows_is_refused(self, docvqa, chartqa, answer):
        report = answer(open_benchmark("docvqa", docvqa), ["a", "b"])
        with pytest.raises(DataError, match="a report of 2 rows for 3 records"):
            open_benchmark("chartqa", chartqa).scores(report)
        with pytest.raises(
            DataError, match=r"a report of other rows: val_v1.0_withQT.json: data\[0\] for test_v1.0.json"
        ):
            open_benchmark("docvqa", docvqa, split="test").save_submission(report, docvqa / "s.json")

    def test_a_benchmark_without_a_server_has_no_submission(self, chartqa, answer):
        task = open_benchmark("chartqa", chartqa)
        with pytest.raises(DataError, match="chartqa: has no server"):
            task.save_submission(answer(task, ["1", "2", "3"]), chartqa / "s.json")

    def test_every_benchmark_has_a_known_metric_and_published_sets_that_it_reads(self):
        for benchmark in BENCHMARKS.values():
            assert benchmark.metric in METRICS | CORPUS_METRICS
            for split, scores in benchmark.published.items():
                assert set(scores) <= {*benchmark.splits[split], "mean"}

    def test_a_notebook_shows_its_rows_and_its_table(self, docvqa, answer):
        task = open_benchmark("docvqa", docvqa)
        assert "What is the date?" in task._repr_html_()
        html = task.scores(answer(task, ["May 4", "x"]))._repr_html_()
        assert "26b published" in html and "90.5" in html

    def test_a_run_with_other_tiles_says_so_above_its_scores(self, docvqa, answer):
        task = open_benchmark("docvqa", docvqa)
        asked = "at most 18 tiles); but asked with max_tiles 4, max_new_tokens 9"
        other = task.scores(answer(task, ["May 4", "x"], max_tiles=4, max_new_tokens=9))
        assert asked in repr(other) and asked in other._repr_html_()
        assert "but asked" not in repr(task.scores(answer(task, ["May 4", "x"])))


class TestWithAModel:
    def test_replies_are_kept_and_the_loaded_report_gives_the_same_scores(self, docvqa, tiny_vlm, tmp_path):
        task = open_benchmark("docvqa", docvqa)
        report = task.evaluate(tiny_vlm, to=tmp_path / "kept", progress=False, max_new_tokens=3)
        assert (report.details["data"], report.details["max_tiles"], report.metric) == ("docvqa val", 18, "anls")
        assert task.scores(Report.load(tmp_path / "kept")).to_dict() == task.scores(report).to_dict()

    def test_a_caption_has_at_least_8_tokens_even_if_the_model_wants_to_end(self, coco, tiny_vlm, monkeypatch):
        generate, lengths = chat._generate, []

        def remember(*args, **options):
            found = generate(*args, **options)
            lengths.extend(len(ids) for ids, _ in found)
            return found

        monkeypatch.setattr(chat, "_generate", remember)
        end = tiny_vlm.tokenizer.convert_tokens_to_ids(tiny_vlm.processor.template.end)
        task = open_benchmark("coco_captions", coco)
        task.evaluate(tiny_vlm, progress=False, sequence_bias=[[[end], 100.0]])
        assert lengths == [9, 9]  # with the closing token
        task.evaluate(tiny_vlm, progress=False, sequence_bias=[[[end], 100.0]], min_new_tokens=0)
        assert lengths[2:] == [1, 1]

    def test_the_command_line_scores_and_writes_a_submission(self, docvqa, tiny, tmp_path, capsys):
        arguments = ["benchmark", "docvqa", str(tiny), str(docvqa), "--to", str(tmp_path / "kept"), "--json"]
        assert main([*arguments, "--submission", str(tmp_path / "s.json")]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["rows"], found["published"]["val"]["2b"]) == (2, 83.9)
        assert len(json.loads((tmp_path / "s.json").read_text())) == 2

    def test_the_command_line_says_what_there_is_and_what_to_get(self, capsys):
        assert main(["benchmark"]) == 0
        printed = capsys.readouterr().out
        assert all(f"{name}: " in printed for name in BENCHMARKS)
        assert main(["benchmark", "docvqa"]) == 0
        assert capsys.readouterr().out.strip() == describe("docvqa")

    def test_the_command_line_refuses_what_would_be_for_nothing_before_it_loads_a_model(self, docvqa, chartqa, capsys):
        for arguments, said in [
            (["docvqa", "nowhere"], "no folder of docvqa's files"),
            (["docvqa", "nowhere", str(docvqa), "--split", "test"], "expected --submission FILE"),
            (
                ["docvqa", "nowhere", str(docvqa), "--rows", "1", "--submission", "s.json"],
                "1 of 2 rows; a server wants",
            ),
            (["chartqa", "nowhere", str(chartqa), "--submission", "s.json"], "chartqa: has no server"),
        ]:
            assert main(["benchmark", *arguments]) == 2
            assert said in capsys.readouterr().err
