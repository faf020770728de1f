"""Verify: nano passes; whatever is broken about a model is a failed check and never an exception."""

import json
import math
import shutil

import pytest
from PIL import Image

from ivlkit.cli import main
from ivlkit.models.families import NANO_FOLDER
from ivlkit.models.hub import files as hub
from ivlkit.models.hub.verify import DATA, RELEASED_IDS, Answered, questions, stored_loss, verify


@pytest.fixture(scope="module")
def nano():
    return verify("nano")


@pytest.fixture
def folder(tmp_path):
    """A copy of nano, to be broken."""
    return shutil.copytree(NANO_FOLDER, tmp_path / "model")


def failed(found):
    return {check.name: check.detail for check in found.checks if check.ok is False}


class TestNano:
    def test_it_works(self, nano):
        assert nano.ok and failed(nano) == {}
        assert [check.name for check in nano.checks] == [
            *("files", "config", "tensors", "tokenizer", "load", "replies", "loss"),
        ]
        assert sum(answer.ok for answer in nano.answers) >= 5

    def test_the_block_has_what_an_issue_needs(self, nano):
        block = str(nano)
        assert block.startswith("ivlkit verify nano, nano: works here\n")
        for part in ("revision", "tensors", "nats a token", "circle.png: What colour", "transformers", "python", "ram"):
            assert part in block

    def test_it_is_readable_by_a_program(self, nano):
        plain = json.loads(json.dumps(nano.to_dict()))
        assert plain["ok"] is True and len(plain["answers"]) == 6 and plain["machine"]["versions"]["torch"]

    def test_a_notebook_shows_every_question_with_its_picture(self, nano):
        html = nano._repr_html_()
        assert html.count("<img ") == 6 and "works here" in html

    def test_the_loss_is_the_cross_entropy_of_the_answers_tokens(self, tiny_vlm):
        """Against plain arithmetic on the logits, one token after the other."""
        import torch

        from ivlkit.data.collate import normalise_tiles
        from ivlkit.data.encode import IGNORE_INDEX, encode
        from ivlkit.data.rows.records import Record, Turn

        stored = questions()["nano"]["stored_answer"]
        turns = (Turn("user", f"<image>\n{stored['question']}"), Turn("assistant", stored["answer"]))
        example = encode(Record(0, turns, (DATA / stored["picture"],)), tiny_vlm.processor)
        with torch.inference_mode():
            logits = tiny_vlm.model(
                input_ids=torch.from_numpy(example.input_ids)[None],
                pixel_values=normalise_tiles(torch.from_numpy(example.tiles)),
            ).logits[0]
        places = [place for place, label in enumerate(example.labels) if label != IGNORE_INDEX]
        losses = [-logits[place - 1].log_softmax(-1)[example.labels[place]].item() for place in places]
        assert len(losses) >= 4
        assert stored_loss(tiny_vlm, stored) == pytest.approx(math.fsum(losses) / len(losses), rel=1e-5)


class TestABrokenModel:
    def test_weights_of_chance_fail_by_their_replies_and_loss(self, tiny):
        found = verify(tiny)
        assert not found.ok and set(failed(found)) == {"replies", "loss"}

    def test_a_cut_weight_file_is_named(self, folder):
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1000])
        found = verify(folder)
        assert "not a whole safetensors file" in failed(found)["tensors"]
        assert found.answers == () and found.checks[-1].detail == "not asked: mend what failed first"

    def test_missing_weights_are_named(self, folder):
        (folder / "model.safetensors").unlink()
        assert set(failed(verify(folder))) == {"files", "tensors"}

    def test_a_config_of_another_size_is_named_by_the_first_tensor(self, folder):
        config = json.loads((folder / "config.json").read_text())
        config["llm_config"]["intermediate_size"] *= 2
        (folder / "config.json").write_text(json.dumps(config))
        assert "has shape" in failed(verify(folder))["tensors"]

    @pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "llama"}'])
    def test_a_broken_config_is_a_finding(self, folder, text):
        (folder / "config.json").write_text(text)
        assert {"config", "tensors", "tokenizer"} <= set(failed(verify(folder)))

    def test_a_missing_tokenizer_is_a_finding(self, folder):
        (folder / "tokenizer.model").unlink()
        assert "tokenizer" in failed(verify(folder))

    def test_weights_that_are_not_finite_fail(self, folder):
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / "model.safetensors")
        key = next(key for key in tensors if key.endswith("output.weight"))
        tensors[key] = tensors[key] * float("nan")
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        assert "loss" in failed(verify(folder))

    def test_a_folder_that_is_not_there_is_a_mistake_not_a_finding(self, capsys):
        assert main(["verify", "nowhere"]) == 2
        assert "nowhere: no such folder" in capsys.readouterr().err


class TestHashes:
    @pytest.fixture
    def recorded(self, folder):
        """With a record as a download writes it."""
        names = sorted(path.name for path in folder.iterdir())
        files = {
            name: {"size": (folder / name).stat().st_size, "digest": hub.file_digest(folder / name, "sha256")}
            for name in names
        }
        record = {"hub_id": "a/b", "revision": "0" * 40, "endpoint": "http://x", "files": files}
        (folder / "download.json").write_text(json.dumps(record))
        return folder

    def test_equal_ones_are_said_with_the_revision(self, recorded):
        found = verify(recorded)
        assert found.ok and found.checks[0].ok is True and found.revision == "0" * 40

    def test_one_changed_byte_is_found(self, recorded):
        with open(recorded / "model.safetensors", "r+b") as file:
            file.seek(-1, 2)
            last = file.read(1)[0]
            file.seek(-1, 2)
            file.write(bytes([last ^ 1]))
        assert "model.safetensors is not sha256:" in failed(verify(recorded))["files"]

    def test_a_broken_record_is_a_finding(self, recorded):
        (recorded / "download.json").write_text("[]")
        found = verify(recorded)
        assert "download.json: broken" in failed(found)["files"] and "broken" in found.revision


class TestReleasedLayouts:
    def test_special_ids_are_those_of_the_released_tokenizers(self, reference):
        from ivlkit.models.processor import load_processor

        for name, template in (("internvl-2b", "internlm2-chat"), ("internvl-4b", "phi3-chat")):
            processor = load_processor(reference / "checkpoints" / name)
            ids = {token: processor.token_id(token) for token in RELEASED_IDS[template]}
            assert ids == RELEASED_IDS[template]

    def test_a_small_copy_is_not_taken_for_the_released_model(self, reference):
        found = verify(reference / "checkpoints" / "internvl-2b")
        assert "B parameters; expected 2.2 B: another model" in failed(found)["tensors"]
        assert "never run on the released weights" in found.note


class TestWhatIsAsked:
    def test_there_are_six_questions_each_with_a_picture_that_opens(self):
        for kind in questions().values():
            assert len(kind["questions"]) == 6 and kind["needed"] <= 6
            for one in [*kind["questions"], kind["stored_answer"]]:
                Image.open(DATA / one["picture"]).load()

    def test_pictures_are_small_and_each_has_its_licence(self):
        pictures = [path for path in DATA.iterdir() if path.suffix in (".jpg", ".png")]
        assert sum(path.stat().st_size for path in pictures) <= 300_000
        licence = (DATA / "LICENSE.md").read_text()
        assert all(path.name in licence for path in pictures if path.suffix == ".jpg")

    @pytest.mark.parametrize(
        ("reply", "ok"),
        [("A cat.", True), ("CAT", True), ("Two cats", False), ("a concatenation", False), ("It's a kitten!", True)],
    )
    def test_a_word_is_found_only_as_a_word(self, reply, ok):
        assert Answered("cat.jpg", "Which animal?", reply, ("cat", "kitten")).ok is ok

    def test_a_total_is_found_behind_its_currency(self):
        assert Answered("receipt.png", "Total?", "The total is $14.75.", ("14.75",)).ok
        assert not Answered("receipt.png", "Total?", "114.75", ("14.75",)).ok


def test_the_command_says_it_by_its_exit_code(tiny, capsys):
    assert main(["verify", str(tiny)]) == 1
    assert "DOES NOT WORK" in capsys.readouterr().out
    assert main(["verify", "nano", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
