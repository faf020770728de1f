"""What a new user writes with only `ivl.<tab>`: what can be meant works, the rest is answered with what to write."""

import ast
import operator
import pydoc
import re
from dataclasses import fields, replace
from importlib.resources import files
from itertools import product
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import yaml
from transformers import GenerationConfig

import ivlkit as ivl
from ivlkit.cli import main
from ivlkit.cli_options import as_typed
from ivlkit.errors import CheckpointError, DataError, RecipeError, TrainingError
from ivlkit.models.export.export import export
from ivlkit.models.load import load
from ivlkit.training.recipes import Recipe
from ivlkit.training.run import Run


@pytest.fixture
def data(write_rows, turns):
    return ivl.open_data(write_rows([{"conversations": turns(f"Tell me about {n}", "x")} for n in range(4)]))


@pytest.fixture
def run(tmp_path, tiny, monkeypatch):
    """A finished run whose model is the tiny one."""
    (tmp_path / "run.yaml").write_text("{}")
    monkeypatch.setattr(Run, "load", lambda self, **_: load(tiny))
    return Run(tmp_path)


class TestEvaluate:
    OPTIONS = {"progress": False, "max_new_tokens": 2}

    def test_a_key_a_folder_and_a_run_are_loaded(self, tiny_vlm, run, data):
        expected = ivl.evaluate(tiny_vlm, data, **self.OPTIONS).rows
        assert ivl.evaluate(str(tiny_vlm.folder), data, **self.OPTIONS).rows == expected
        assert ivl.evaluate(run, data, **self.OPTIONS).rows == expected
        assert ivl.evaluate("nano", data, **self.OPTIONS).details["model"] == "the package"

    def test_the_two_in_the_other_order_are_refused(self, tiny_vlm, data):
        with pytest.raises(DataError, match=r"a Data in the model's place; expected evaluate\(model, data\)"):
            ivl.evaluate(data, tiny_vlm)

    def test_metrics_is_answered_with_metric(self, tiny_vlm, data):
        with pytest.raises(DataError, match="unknown option 'metrics'; .*write metric="):
            ivl.evaluate(tiny_vlm, data, metrics="f1")
        with pytest.raises(DataError, match="unknown option 'prompt'; .*write question="):
            ivl.predict(tiny_vlm, data, prompt="Hi")

    def test_a_generation_config_holds_also_where_there_is_a_default(self, tiny_vlm, data):
        expected = ivl.evaluate(tiny_vlm, data, **self.OPTIONS).rows
        for config in ({"max_new_tokens": 2}, GenerationConfig(max_new_tokens=2, temperature=0.5, max_length=9)):
            assert ivl.evaluate(tiny_vlm, data, progress=False, generation_config=config).rows == expected

    def test_a_metric_of_another_range_is_warned_of(self, tiny_vlm, data):
        for score, warned in ((1, []), (100, ["4 rows have a score that is not from 0 to 1, such as 100."])):
            found = ivl.evaluate(tiny_vlm, data, metric=lambda reply, truth, score=score: score, **self.OPTIONS)
            assert [said.split(" A ")[0] for said in found.warnings] == warned
        assert replace(found, metric="cider").warnings == []  # 0 to 10

    def test_a_page_takes_the_path_of_the_report_before(self, tiny_vlm, data, tmp_path):
        found = ivl.evaluate(tiny_vlm, data, **self.OPTIONS)
        pages = [
            found.save_html(tmp_path / f"{name}.html", before=before).read_text()
            for name, before in (("a", found), ("b", found.save_json(tmp_path / "before.json")))
        ]
        assert pages[0] == pages[1]

    def test_a_metric_of_other_arguments_is_answered_before_a_question_is_asked(self, data):
        for metric in (lambda row: 1.0, lambda reply, truth, weight: 1.0):
            with pytest.raises(DataError, match=r"metric <lambda>: .*; expected a function of \(reply, truth\)"):
                ivl.evaluate(None, data, metric=metric)
        with pytest.raises(DataError, match="a NoneType in the model's place"):  # operator.eq tells no parameters
            ivl.evaluate(None, data, metric=operator.eq)

    def test_runs_are_compared_by_their_reports(self, run):
        with pytest.raises(DataError, match=r"a Run in a report's place; .*compare\(evaluate\(before, data\)"):
            ivl.compare(run, run)


class TestTrain:
    def test_data_before_the_recipe_is_answered_with_the_order(self, data):
        for first in (data, {"model": "nano"}, "train.jsonl"):
            with pytest.raises(RecipeError, match=r"in the recipe's place; .*train\(recipe, data\)"):
                ivl.train(first, "nano-lora")

    def test_rows_in_memory_are_answered_with_what_writes_them(self, data):
        for call in (lambda: ivl.train("nano-lora", [data[0], data[1]]), lambda: ivl.open_data(["a.jsonl", "b.jsonl"])):
            with pytest.raises(DataError, match=r"a list in the data's place; .*from_dataset\(rows, to=folder\)"):
                call()

    def test_history_is_a_list(self, run):
        assert run.history == []
        with pytest.raises(TrainingError, match="write run.history"):
            run.history()


class TestChat:
    @pytest.mark.parametrize(
        ("option", "meant"),
        [
            ("image", "images"),
            ("system", "system_message"),
            ("system_prompt", "system_message"),
            ("max_tokens", "max_new_tokens"),
            ("max_tile", "max_tiles"),
            ("max_num", "max_tiles"),
            ("max_dynamic_patch", "max_tiles"),
            ("stop", "stop_strings"),
            ("temprature", "temperature"),
        ],
    )
    def test_an_option_of_another_name_is_answered_with_its_own(self, tiny_vlm, option, meant):
        with pytest.raises(DataError, match=f"unknown option {option!r}; .*; write {meant}=$"):
            tiny_vlm.chat("Hi", **{option: 1})

    def test_what_resembles_nothing_is_to_be_left_out(self, tiny_vlm):
        with pytest.raises(DataError, match="unknown option 'zzz'; expected one of images.*; leave it out"):
            tiny_vlm.chat("Hi", zzz=1)
        for option in ("num_frames", "prompt"):  # near num_beams; another function's
            with pytest.raises(DataError, match="; leave it out$"):
                tiny_vlm.chat("Hi", **{option: 1})

    def test_an_option_that_would_change_nothing_is_refused(self, tiny_vlm):
        for options in ({"temperature": 0.5}, {"top_p": 0.9, "generation_config": {"max_new_tokens": 2}}):
            with pytest.raises(DataError, match="changes nothing, since replies are greedy; .*write do_sample=True, "):
                tiny_vlm.chat("Hi", **options)
        with pytest.raises(DataError, match="max_length=9 changes nothing; write max_new_tokens="):
            tiny_vlm.chat("Hi", max_length=9)
        for options in ({"temperature": 0}, {"do_sample": False, "temperature": 0.5}):
            assert tiny_vlm.chat("Hi", max_new_tokens=2, **options).text == tiny_vlm.chat("Hi", max_new_tokens=2).text

    def test_frames_in_a_list_are_answered_with_images(self, tiny_vlm):
        with pytest.raises(DataError, match=r"a list in the video's place; .*images=\[…\]"):
            tiny_vlm.chat("Hi", video=["a.png"])

    def test_the_picture_first_is_answered_with_the_order(self, tiny_vlm, draw_picture, tmp_path):
        draw_picture().save(tmp_path / "a.png")
        for picture in (draw_picture(), tmp_path / "a.png", str(tmp_path / "a.png")):
            with pytest.raises(
                DataError, match=r"in the question's place; .*vlm.chat\(\"What is this\?\", \"a.png\"\)"
            ):
                tiny_vlm.chat(picture, "What shape?")

    def test_one_question_for_a_batch_is_no_list_of_letters(self, tiny_vlm, draw_picture):
        with pytest.raises(DataError, match=r"chat_batch: one question, 'Hi'; expected a list; write vlm.chat_batch\("):
            tiny_vlm.chat_batch("Hi", images=[draw_picture(), draw_picture()])

    def test_a_released_model_says_how_it_is_loaded_again(self, tiny, data):
        vlm = load(tiny)
        beside = replace(vlm)
        vlm.release()
        asks = (lambda vlm: vlm.chat("Hi"), lambda vlm: vlm.chat_batch(["Hi"]), lambda vlm: ivl.evaluate(vlm, data))
        for ask, one in product(asks, (vlm, beside)):
            with pytest.raises(CheckpointError, match=r"released; expected a loaded model; .*ivlkit.load\('"):
                ask(one)

    @pytest.mark.parametrize("dtype", [None, torch.float32])
    def test_a_gpu_that_torch_does_not_see_is_named_before_anything_is_read(self, tiny, dtype, monkeypatch):
        """As torch answers where it is built for the CPU, and where a driver or the numbered GPU is missing."""
        for error in (AssertionError("Torch not compiled with CUDA enabled"), RuntimeError("invalid device ordinal")):
            monkeypatch.setattr("torch.cuda.get_device_capability", Mock(side_effect=error))
            monkeypatch.setattr("torch.cuda.mem_get_info", Mock(side_effect=error))
            with pytest.raises(CheckpointError, match="device='cuda:9': torch sees no such GPU .*; expected 'cpu'"):
                load(tiny, device="cuda:9", dtype=dtype)
            with pytest.raises(CheckpointError, match="torch sees no such GPU"):
                load(tiny, device=0, dtype=dtype)


class TestLoad:
    @pytest.mark.parametrize("name", ["2B", "OpenGVLab/Mini-InternVL-Chat-2B-V1-5", "mini-internvl-chat-2b-v1-5"])
    def test_a_released_model_by_its_other_names_is_answered_with_its_key(self, name, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(CheckpointError, match=f"{name}: no such folder; .*; write '2b'$"):
            ivl.load(name)

    def test_what_is_no_name_of_a_model_is_answered_with_what_to_write(self, run, tiny_vlm, data):
        for call in (ivl.load, ivl.verify, lambda found: ivl.suggest(found, data)):
            for found in (run, tiny_vlm, None):
                with pytest.raises(CheckpointError, match=r"a \w+ in the model's place; expected .*run.load\(\)"):
                    call(found)

    def test_a_dtype_and_a_device_that_torch_does_not_know_are_named(self, tiny):
        with pytest.raises(CheckpointError, match="dtype='bf16'; expected a dtype of torch, such as torch.bfloat16"):
            load(tiny, dtype="bf16")
        for call in (load, lambda source, **options: export(source, tiny.parent / "never", **options)):
            with pytest.raises(CheckpointError, match="device='gpu': torch sees no such GPU .*; expected 'cpu'"):
                call(tiny, device="gpu")


class TestData:
    def test_a_row_is_encoded_with_a_processor_or_a_model(self, tiny_vlm, data):
        assert ivl.encode(data[0], tiny_vlm).input_ids.tolist() == (
            ivl.encode(data[0], tiny_vlm.processor).input_ids.tolist()
        )
        with pytest.raises(DataError, match=r"a dict in the record's place; expected one, such as data\[0\]"):
            ivl.encode({"question": "x"}, tiny_vlm)

    def test_a_part_by_its_name_is_answered_with_split(self, data):
        with pytest.raises(DataError, match=r"data\['train'\]; expected a row's number; .*split='train'\)"):
            data["train"]

    def test_shares_without_names_are_answered_with_names(self, data):
        with pytest.raises(DataError, match=r"split\(0.8,\); expected names; write data.split\(train=0.8"):
            data.split(0.8)
        for parts in ({"test_size": 0.2}, {"train": 0.8, "test": 0.2, "by": "task"}):
            with pytest.raises(DataError, match=r"sum to 1; write data.split\(train=0.8, test=0.2\)"):
                data.split(**parts)

    def test_what_is_no_rows_number_is_answered_with_select(self, data):
        with pytest.raises(DataError, match=r"expected a row's number; write data.select\(range\(0, 3, 1\)\)$"):
            data[:3]
        for chosen in (10, 0.5, len):
            with pytest.raises(DataError, match=r"select\(.*\); expected a list of row numbers; write data.select\("):
                data.select(chosen)

    def test_a_part_of_a_file_that_has_none_is_not_all_of_its_rows(self, data):
        said = "split='test' of one file of rows, which has no parts; open that part's own"
        with pytest.raises(DataError, match=said):
            ivl.open_data(data.path, split="test")
        assert len(ivl.open_data(data.path, split="all")) == 4

    def test_a_loaded_model_is_checked_with_and_what_is_none_is_named(self, tiny_vlm, data):
        stats = [ivl.check(data, model).stats | {"seconds": 0} for model in (tiny_vlm, tiny_vlm.processor)]
        assert stats[0] == stats[1] != ivl.check(data).stats | {"seconds": 0}
        with pytest.raises(CheckpointError, match="a Recipe in the model's place"):
            ivl.check(data, ivl.recipe("nano-lora"))
        with pytest.raises(DataError, match="a list in the data's place"):
            ivl.check([data[0]])

    def test_a_path_is_no_picture_to_cut(self):
        for picture in ("a.png", np.zeros((4, 4, 3), np.uint8)):
            with pytest.raises(TypeError, match=r"expected a PIL image; write Image.open\(path\)"):
                ivl.split_into_tiles(picture)


class TestRecipe:
    @pytest.mark.parametrize(
        ("field", "meant"),
        [
            ("num_train_epochs", "epochs"),
            ("lr", "learning_rate"),
            ("batch_size", "total_batch, .* or per_device_batch"),
            ("r", "lora_rank"),
            ("gradient_accumulation_steps", "total_batch"),
            ("bf16", "nothing"),
            ("output_dir", r"train\(…, folder=…\)"),
            ("early_stopping", "patience"),
            ("max_steps", "epochs"),
            ("projector_lr", "projector_learning_rate"),
            ("freeze_llm", "language='frozen'"),
            ("load_in_4bit", "language='qlora' for 4 bits, or weights='float8'"),
            ("target_modules", "nothing"),
            ("system_prompt", "nothing"),
        ],
    )
    def test_another_trainers_name_is_answered_with_what_to_write(self, field, meant):
        with pytest.raises(RecipeError, match=f"unknown field {field!r}; .*; write {meant}"):
            ivl.recipe("nano-lora", **{field: 1})

    def test_what_is_to_be_written_can_be_written(self):
        told = yaml.safe_load(files("ivlkit.training").joinpath("recipes.yaml").read_text())["elsewhere"]
        known = {field.name for field in fields(Recipe)}
        begins = {name: re.match(r"\w+", text)[0] for name, text in told.items()}
        assert {begin for begin in begins.values() if begin not in known} == {"nothing", "train"}
        assert not known.intersection(begins)
        values = [pair for text in told.values() for pair in re.findall(r"(\w+)=('\w+'|1)(?!\w)", text)]
        for field, value in values:
            assert ivl.recipe("nano-lora", **{field: ast.literal_eval(value)})
        assert len(values) >= 8

    def test_a_name_without_its_model_is_answered_with_all_that_hold_it(self):
        with pytest.raises(RecipeError, match="did you mean '2b-lora' or '4b-lora' or '26b-lora' or 'nano-lora'"):
            ivl.recipe("lora")
        with pytest.raises(RecipeError, match="did you mean '2b-full' or '2b-lora'"):
            ivl.recipe("2b")

    def test_a_batch_that_does_not_divide_is_answered_with_one_that_does(self):
        with pytest.raises(RecipeError, match="change one of the three, such as per_device_batch=4$"):
            ivl.recipe("nano-lora", total_batch=4).accumulation  # noqa: B018
        assert ivl.recipe("nano-lora", total_batch=4, per_device_batch=4).accumulation == 1
        with pytest.raises(RecipeError, match="such as total_batch=126$"):
            ivl.recipe("26b-full", gpus=7).accumulation  # noqa: B018
        assert ivl.recipe("26b-full", gpus=7, total_batch=126).accumulation == 9

    def test_a_suggestion_begins_with_the_model(self, data):
        with pytest.raises(CheckpointError, match="a Data in the model's place"):
            ivl.suggest(data, "nano")

    def test_memory_is_a_number(self):
        with pytest.raises(RecipeError, match="gpu_gib='24GB'; expected a number of GiB"):
            ivl.plan("2b-lora", gpu_gib="24GB")
        with pytest.raises(RecipeError, match="expected one of B200"):
            ivl.plan("2b-lora", card=["L4"])

    def test_a_file_in_the_texts_place_is_answered_with_what_reads_it(self):
        with pytest.raises(RecipeError, match=r'a recipe that is a str; .*ivlkit.recipe\("mine.yaml"\)'):
            Recipe.from_yaml("mine.yaml")

    def test_a_suggestion_with_a_function_or_another_whole_number_is_answered_as_a_recipe_is(self, data):
        for fixed, expected in (
            ({"loss": print}, "the name of that function"),
            ({"total_batch": np.int64(8)}, "whole"),
        ):
            with pytest.raises(RecipeError, match=f"expected .*{expected}"):
                ivl.suggest("nano", data, **fixed)

    def test_help_lists_every_field(self):
        text = pydoc.render_doc(ivl.recipe)
        assert all(f"\n        {field.name}: " in text for field in fields(Recipe))
        assert "epochs: float = 1  # passes over the data" in text


class TestCommandLine:
    def said(self, arguments, capsys):
        assert main(arguments) == 2
        return capsys.readouterr().err

    def test_options_are_spelt_as_they_are_typed(self, capsys, tmp_path, monkeypatch):
        def refuse(*_, **__):
            raise DataError("rows.csv: no column; expected image= or images=folder; set seed=1, not per_device_batch=2")

        monkeypatch.setattr("ivlkit.data.importing.convert.convert", refuse)
        said = self.said(["convert", "rows.csv", "--to", str(tmp_path / "to")], capsys)
        assert "--images folder" in said and "--seed 1" in said and "per_device_batch=2" in said

    def test_fields_of_a_recipe_are_set_and_those_with_an_option_are_options(self, capsys):
        said = self.said(["train", "2b-lora", "--set", "compile=true", "packing=false", "--dry-run"], capsys)
        assert "--set packing=true" in said and "--set --set" not in said
        assert "--epochs -1.0; expected more than 0" in self.said(["train", "2b-lora", "--epochs", "-1"], capsys)
        assert "--set 'lora_rank'; expected" in self.said(["train", "2b-lora", "--set", "lora_rank"], capsys)

    def test_an_option_without_a_value_is_typed_without_one(self):
        said = "mend it, or train again with skip_unusable=True (--skip-unusable): it weighs"
        assert as_typed(said, "train", "--data --skip-unusable") == said

    def test_what_stands_in_a_file_keeps_its_spelling(self):
        said = "gpus=2 in run.yaml, but 1 process started; set gpus=1"
        assert as_typed(said, "train", "--gpus") == "gpus=2 in run.yaml, but 1 process started; set --gpus 1"
