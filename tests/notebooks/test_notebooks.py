"""Every notebook runs top to bottom in a copy, and its results are what it says."""

import json
import os
import re
import shutil
from pathlib import Path

import nbclient
import nbformat
import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))
SECONDS = {"09_label_train_review.ipynb": 1200}  # of others: 300
SECONDS |= dict.fromkeys(["11_finetune_full.ipynb", "07_finetune_lora.ipynb"], 900)

LONGEST_FIRST = sorted(NOTEBOOKS, key=lambda name: -SECONDS.get(name, 0))


def expect_first_look(results):
    assert results["printed_right"]
    assert results["tiles_640x480"] == 13
    assert results["trained_tokens"] == results["truth_tokens"]
    assert results["handwriting_exact_match"] < 0.6


def expect_download(results):
    assert results["works"] and results["questions_right"] >= 5
    assert results["parameters_of_headers"] == results["parameters_of_model"]
    assert results["fetched_bytes"] == 0
    assert results["one_byte_found"]


def expect_dynamic_tiling(results):
    assert tuple(results["photo_grid"]) == (3, 2)
    assert results["icon_tokens"] == results["phone_photo_tokens"] == 13 * 256
    assert results["sizes_that_differ"] > 0 and results["same_shape_where_they_differ"]
    assert results["letter_px_1"] < 4 and results["letter_px_12"] > 14
    assert results["word_replies"][0] != results["word_replies"][1] == results["word_replies"][2]
    scores = results["scores"]
    assert all(by_budget[0] < 0.3 and by_budget[-1] > 0.8 for by_budget in scores.values())
    assert scores["words"][1] > 0.8 and scores["numbers"][1] < 0.8 and scores["prices"][2] < 0.2
    assert results["tiles_of_three"] == [5, 5, 5] and results["tiles_at_2048"] == 7
    assert results["a4_tokens"] == 7 * 256 and results["smallest"] == 6


def expect_conversation_to_labels(results):
    assert results["trained"] == results["answer_tokens"]
    assert results["wrong_template"] < results["right_template"] >= results["asked"] / 2
    assert results["role_pieces"] > 1
    assert results["cut_supervised"] == 0 and results["refused"] == 2
    assert results["answer_share"] < 0.2 and not results["system_prompt_trained"]
    right, wrong = (results["losses"][name] for name in ("the answers", "every token"))
    assert wrong[0] - wrong[1] > 5 > right[0] - right[1]
    right, wrong = (results["scores"][name] for name in ("the answers", "every token"))
    assert right[-1] > right[0] + 0.1 and right[-1] > wrong[-1] + 0.1


def expect_inside_the_model(results):
    assert (results["tiles"], results["patches_of_a_tile"], results["tokens_of_a_tile"]) == (4, 64, 16)
    assert results["first_token_of_patches"] == [0, 1, 8, 9] and results["same_shuffle"] and results["nothing_lost"]
    assert results["maps"] == 3 and results["own_fall"] > max(1, 2 * results["other_fall"])
    assert results["probe"]["features"] > max(results["probe"]["pixels"], results["own_replies"]) + 0.05
    assert results["vectors"] == 13_325


def expect_your_data(results):
    assert results["lines"] == results["rows"] + results["listed"] and results["listed"] == 3
    assert (results["errors"], results["contradictions"]) == (0, 1)
    assert results["same_picture_found"]
    assert results["train"] > 20
    assert results["pictures_on_two_sides"] == 0
    assert results["ready"]


def expect_memory_and_time(results):
    assert not results["fits_24"] and results["advice_ends_in_fits"]
    assert all(0.9 < share < 1.1 for share in results["counted_beside_planned"].values())
    assert results["measured_seconds"] / 10 < results["predicted_seconds"] < results["measured_seconds"] * 10
    beside_measured = results["parts_beside_measured"].values()
    assert len(beside_measured) == 14 and all(0.9 < share < 1.1 for share in beside_measured)


def expect_finetune_lora(results):
    assert results["state"] == "finished"
    assert results["after_single_digits"] >= 0.9
    assert results["after"] >= results["before"] + 0.25
    assert results["same_reply_after_export"]


def expect_evaluate(results):
    assert results["steps"][0] == 0 and results["steps"] == sorted(results["steps"])
    assert results["scores"][-1] > results["scores"][0] and results["difference_at_least"] > 0
    assert results["won"] > results["lost"]
    assert results["rows_in_csv"] == 160 and results["page_mb"] < 10
    assert results["right"] - max(results["shuffled"], results["none"]) > 0.25
    assert results["believed_to_look"] and results["follows"] > results["right"] - 0.2
    blind, looks = (results["trap"][name] for name in ("trained blind", "trained to look"))
    assert blind[0] > 0.7 and abs(blind[0] - blind[1]) < 0.1 < looks[0] - looks[1]
    assert results["warned"] == ["trained blind"]
    assert results["asked_again"] == 0 and results["text_rows"] == 70


def expect_label_train_review(results):
    scores = results["scores"]
    assert results["steps"]["20 labels"] == 4 and results["gain_of_20"][1] < 0.2
    assert 0.35 < scores["before"] < 0.65 and results["gain_of_20"][0] < 0.05
    assert scores["100 labels"] - scores["before"] > 1.5 * (scores["20 labels"] - scores["before"])
    assert results["gain_of_100"][0] > 0 and scores["400 labels"] > scores["100 labels"]
    assert scores["400 labels"] > scores["100 and 100 at random"] > scores["100 labels"]
    assert results["least_sure_beside_random"][0] <= 0 <= results["least_sure_beside_random"][1]
    surest, _, least_sure = results["right_as_suggested"]
    assert surest > least_sure + 20
    assert surest > 80 and least_sure < 50 and results["temperature"] > 1
    assert results["labelled_twice"] == [17, 30]
    share, right, low, high = results["surest"]
    assert 0.2 <= share < 0.5 and low < right < high and right > 0.8
    assert results["found"][0] > 3 * 0.05 * results["wrong_labels"]
    assert results["found"][0] > 10 and results["found"][2] > 0.8 * results["wrong_labels"]
    assert results["found"][2] > results["wrong_labels"] / 2 and 10 < results["corrected"] <= results["wrong_labels"]
    assert results["table_as_it_was"] == 400


def expect_finetune_full(results):
    assert (results["state"], results["steps"]) == ("finished", 150)
    assert results["learned_at_least"] > 0.25 and results["lost_at_least"] > 0.02
    assert results["log_is_of_these_weights"]  # else write it anew: benchmarks/nano.py says how
    assert all(abs(results[name]["here"] - results[name]["log"]) < 0.1 for name in ("new", "old"))
    assert results["given_back"].keys() == {"nano-lora", "nano-full"}
    log = json.loads((FOLDER.parent / "ivlkit" / "nano" / "forgetting.json").read_text(encoding="utf-8"))["runs"]
    for name in results["given_back"]:  # nothing that the intervals would show, it says
        (_, low, high), (_, lowest, highest) = (log[f"{name}, {rows}"]["old"] for rows in ("alone", "10% old rows"))
        assert low <= highest and lowest <= high
    assert results["old_share"] == pytest.approx(0.1, abs=0.001) and not results["fits_24"]


def expect_export_and_share(results):
    assert set(results["replies"]) == {"run", "released", "adapter", "plain transformers"}
    assert results["same_reply_everywhere"] and results["fresh_process_exit_code"] == 0
    assert 0 < results["sizes_mb"]["adapter"] < results["sizes_mb"]["released"] / 2
    assert results["card_has_scores"] and results["card_has_fingerprint"] and results["card_serves"]
    assert results["next_state"] == "finished" and results["forged_refused"]


def expect_my_project(results):
    assert (results["lines"], results["listed"], results["unusable"]) == (300, 3, 0)
    assert results["train"] + results["validation"] + results["test"] == 297 and results["state"] == "finished"
    assert results["after"] >= results["before"] and results["after"] > results["shuffled"] + 0.25
    assert all(results["pages"]) and results["same_reply_after_export"]
    assert results["to_look_at"] == 1000  # of 30 rows no interval reaches so far


def expect_the_loop(results):
    assert (results["steps"], results["micro_batches"]) == (6, 24)
    assert results["by_hand"] == results["by_train"]  # to the last digit
    assert results["first_other"] == 5
    assert results["moved"]["last"][3:] == [0.0] * 3
    assert min(results["moved"]["first"] + results["moved"]["last"][:3]) > 0
    assert 0 < results["of_batch"]["focal"] < results["of_batch"]["cross_entropy"]
    assert {sum(tokens) for tokens in results["tokens_of_steps"].values()} == {
        sum(results["tokens_of_steps"]["shuffled"])
    }
    longest_first = results["tokens_of_steps"]["longest_first"]
    assert longest_first == sorted(longest_first, reverse=True)
    assert results["own"] == ["finished", "loss_and_order:focal", "loss_and_order:longest_first"]
    assert results["hashed"] == results["own"][1:]


def expect_many_gpus(results):
    assert results["states"] == ["finished"] * 3 and results["steps"] == [2] * 3
    assert results["difference"] < 1e-5
    assert results["engines"][0] == "one process"
    assert results["engines"][1:] == [
        f"{engine} over 2 processes (gloo)" for engine in ("DistributedDataParallel", "DeepSpeedEngine ZeRO-3")
    ]
    assert results["rows_of_step"] == 16 and max(results["shares"]) < 1.05 * min(results["shares"])
    assert results["held_gib"]["ZeRO-1"] < 24 < results["held_gib"]["DDP"]
    assert "gpus=2 in run.yaml, but 1 process started" in results["refused"]


EXPECTED = {
    "00_first_look.ipynb": expect_first_look,
    "01_download.ipynb": expect_download,
    "02_dynamic_tiling.ipynb": expect_dynamic_tiling,
    "03_conversation_to_labels.ipynb": expect_conversation_to_labels,
    "04_inside_the_model.ipynb": expect_inside_the_model,
    "05_your_data.ipynb": expect_your_data,
    "06_memory_and_time.ipynb": expect_memory_and_time,
    "07_finetune_lora.ipynb": expect_finetune_lora,
    "08_evaluate.ipynb": expect_evaluate,
    "09_label_train_review.ipynb": expect_label_train_review,
    "10_export_and_share.ipynb": expect_export_and_share,
    "11_finetune_full.ipynb": expect_finetune_full,
    "12_the_loop.ipynb": expect_the_loop,
    "13_many_gpus.ipynb": expect_many_gpus,
    "my_project.ipynb": expect_my_project,
}


def read(name):
    return nbformat.read(FOLDER / name, as_version=4)


def test_there_are_notebooks_and_each_has_its_expectations():
    assert NOTEBOOKS and set(NOTEBOOKS) == set(EXPECTED)


# Python runs this before anything else, in the kernel and in what it starts: only this machine can be reached.
OFFLINE = """
import os, socket

def refuse(address):
    with open(os.environ["ASKED_OF_THE_NETWORK"], "a") as file:
        file.write(f"{address}\\n")
    raise OSError(f"no network here: {address}")

def is_here(host):
    return host in (None, "", "localhost", socket.gethostname()) or str(host).startswith(("127.", "::"))

connect, find = socket.socket.connect, socket.getaddrinfo
def connect_here(self, address):
    is_path = not isinstance(address, tuple)
    return connect(self, address) if is_path or is_here(address[0]) else refuse(address)

socket.socket.connect = connect_here
socket.getaddrinfo = lambda host, *rest, **options: find(host, *rest, **options) if is_here(host) else refuse(host)
"""


def execute(name, folder):
    """The notebook as it is after one run in a copy, and what it asked of the network."""
    work, asked = shutil.copytree(FOLDER, folder / "notebooks"), folder / "asked.txt"
    (folder / "offline").mkdir()
    (folder / "offline" / "sitecustomize.py").write_text(OFFLINE)
    paths = [str(folder / "offline"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "ASKED_OF_THE_NETWORK": str(asked)}
    notebook = unsolved(read(name))
    notebook.cells.append(nbformat.v4.new_code_cell("import json; print(json.dumps(results))"))
    options = {"timeout": SECONDS.get(name, 300), "resources": {"metadata": {"path": str(work)}}}
    nbclient.NotebookClient(notebook, kernel_name="python3", **options).execute(env=environment)
    return notebook, asked.read_text() if asked.exists() else ""


def unsolved(notebook):
    """The notebook with each check also before the solution that stands in front of it, where it may fail."""
    cells = []
    for cell in notebook.cells:
        if "check" in cell.metadata.get("tags", []):
            assert "solution" in cells[-1].metadata.tags
            early = nbformat.v4.new_code_cell(cell.source, metadata={"tags": ["raises-exception"]})
            cells.insert(len(cells) - 1, early)
        cells.append(cell)
    notebook.cells = cells
    return notebook


@pytest.mark.parametrize("name", LONGEST_FIRST)
def test_notebook_gives_its_results_without_a_network_and_its_checks_need_the_solutions(name, tmp_path):
    notebook, asked = execute(name, tmp_path)
    printed = notebook.cells[-1].outputs  # a warning may come between a line and its end
    EXPECTED[name](json.loads("".join(output.text for output in printed if output.get("name") == "stdout")))
    assert asked == ""
    tried = [cell for cell in notebook.cells if "raises-exception" in cell.metadata.get("tags", [])]
    checks = [cell for cell in notebook.cells if "check" in cell.metadata.get("tags", [])]
    assert len(tried) == len(checks) and all(cell.outputs[-1].output_type == "error" for cell in tried)
    assert all(cell.outputs[-1].output_type == "stream" for cell in checks)


# Of a random checkpoint nothing can be learned, so those that only look; its small samples are for speed.
LOOKING = [f"{name}.ipynb" for name in ("00_first_look", "01_download", "02_dynamic_tiling")]
LOOKING += ["03_conversation_to_labels.ipynb", "04_inside_the_model.ipynb"]


@pytest.mark.parametrize("key", ["26b", "2b", "4b"])
@pytest.mark.parametrize("name", LOOKING)
def test_a_notebook_that_looks_runs_on_a_checkpoint_of_each_family(name, key, reference, tmp_path):
    notebook = read(name)
    (chosen,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    folder = (reference / "checkpoints" / f"internvl-{key}").resolve()
    chosen.source, count = re.subn('^MODEL = "nano"', f'MODEL = "{folder}"', chosen.source, flags=re.MULTILINE)
    assert count == 1
    chosen.source = re.sub(r"^((PROBE_)?ROWS|STEPS) = \d+", r"\1 = 12", chosen.source, flags=re.MULTILINE)
    for cell in notebook.cells:  # a check may ask for what only a trained model does
        if "check" in cell.metadata.get("tags", []):
            cell.metadata.tags = ["raises-exception"]
    work = shutil.copytree(FOLDER, tmp_path / "notebooks")
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(work)}}
    ).execute()
    assert notebook.cells[-1].outputs[-1].output_type == "execute_result"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_has_an_exercise_that_is_checked(name):
    assert any("check" in cell.metadata.get("tags", []) for cell in read(name).cells)


def untold(output):
    """The pictures of an output that have no alternative text."""
    data, metadata = output.get("data", {}), output.get("metadata", {})
    bare = [kind for kind in data if kind.startswith("image/") and not metadata.get(kind, {}).get("alt")]
    tags = re.findall(r"<img\b[^>]*>", data.get("text/html", ""))
    return bare + [tag for tag in tags if not re.search(r'\balt="[^"]', tag)]


class TestShape:
    @pytest.mark.parametrize("name", NOTEBOOKS)
    def test_what_it_shows_needs_no_kernel(self, name):
        """A widget's view is an empty place in a static page; what is shown beside it is HTML."""
        shown = [output.get("data", {}) for cell in read(name).cells for output in cell.get("outputs", [])]
        assert not [data for data in shown if "application/vnd.jupyter.widget-view+json" in data]
        assert "VBox(" not in (FOLDER / name).read_text()

    @pytest.mark.parametrize("name", NOTEBOOKS)
    def test_each_picture_it_shows_is_told_in_words(self, name):
        assert not [each for cell in read(name).cells for output in cell.get("outputs", []) for each in untold(output)]

    @pytest.mark.parametrize(
        ("data", "metadata", "expected"),
        [
            ({"image/png": "aGk="}, {}, ["image/png"]),
            ({"image/png": "aGk="}, {"image/png": {"alt": "a 7"}}, []),
            ({"text/html": '<p><img alt="" src="a"><img src="b"></p>'}, {}, ['<img alt="" src="a">', '<img src="b">']),
            ({"text/html": '<img src="a" alt="a 7">'}, {}, []),
        ],
    )
    def test_a_picture_without_words_is_found(self, data, metadata, expected):
        assert untold({"data": data, "metadata": metadata}) == expected

    @pytest.mark.parametrize("name", NOTEBOOKS)
    def test_it_is_small_and_carries_no_machine_metadata(self, name):
        notebook = read(name)
        assert (FOLDER / name).stat().st_size < 500_000
        assert set(notebook.metadata) <= {"kernelspec", "language_info"}
        assert all(set(cell.metadata) <= {"tags", "jupyter"} for cell in notebook.cells)

    @pytest.mark.parametrize("name", NOTEBOOKS)
    def test_it_was_run_once_from_top_to_bottom_without_an_error(self, name):
        cells = [cell for cell in read(name).cells if cell.cell_type == "code"]
        assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
        assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]

    @pytest.mark.parametrize("name", NOTEBOOKS)
    def test_it_has_the_parts_a_reader_expects(self, name):
        notebook = read(name)
        prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
        for part in ("**You will**", "**What you should see**", "## Recap", "## Exercises", "## Next"):
            assert part in prose
        tags = [tag for cell in notebook.cells for tag in cell.metadata.get("tags", [])]
        assert tags.count("parameters") == 1 and "solution" in tags
        code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
        assert code[-1].startswith("results = ")
        assert sum(source.count("def ") for source in code) <= 2

    @pytest.mark.parametrize("name", NOTEBOOKS)
    def test_a_prediction_is_followed_by_a_cell_for_the_guess_which_is_compared_below(self, name):
        cells = [cell.source for cell in read(name).cells]
        asked = [place for place, source in enumerate(cells) if re.search(r"\*predict first", source, re.I)]
        assert asked and sum(source.startswith("guess = ") for source in cells) == len(asked)
        for place, end in zip(asked, [*asked[1:], len(cells)], strict=True):
            assert cells[place + 1].startswith("guess = ")
            assert "{guess" in "".join(cells[place + 2 : end])

    @pytest.mark.parametrize("name", NOTEBOOKS)
    def test_what_a_test_reads_and_a_reader_rarely_needs_is_folded(self, name):
        folded = {cell.source: cell.metadata.jupyter for cell in read(name).cells if "jupyter" in cell.metadata}
        results = [hidden for source, hidden in folded.items() if source.startswith("results = ")]
        assert results == [{"outputs_hidden": True, "source_hidden": True}]
        for code in ("ivl.machine())", ".to_yaml())"):
            shown = [cell.source for cell in read(name).cells if code in cell.source and cell.cell_type == "code"]
            assert all(folded[source] == {"outputs_hidden": True} for source in shown)


def links(source):
    return re.findall(r"\]\(([^)#:]+\.(?:ipynb|md))", source)


def test_each_notebook_names_the_one_after_it_and_the_last_numbered_one_leads_to_a_project():
    for name, following in zip(NOTEBOOKS, NOTEBOOKS[1:], strict=False):
        (cell,) = [cell for cell in read(name).cells if cell.source.startswith("## Next")]
        assert links(cell.source)[0] == following


@pytest.mark.parametrize("name", [*NOTEBOOKS, "README.md", "TEACHING.md"])
def test_every_link_to_a_file_leads_to_one(name):
    texts = [cell.source for cell in read(name).cells] if name in NOTEBOOKS else [(FOLDER / name).read_text()]
    assert all((FOLDER / file).exists() for text in texts for file in links(text))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_another_notebook_is_named_by_a_link(name):
    prose = [cell.source for cell in read(name).cells if cell.cell_type == "markdown"]
    named = re.findall(
        r"(?<!\[)`(\d\d_\w+|my_project)`", "\n".join(each for each in prose if "On your GPU" not in each)
    )
    assert {f"{other}.ipynb" for other in named} <= {name}
