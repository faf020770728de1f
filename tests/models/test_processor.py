"""Everything but the weights comes from the folder."""

import json
import shutil
from dataclasses import replace

import pytest
from PIL import Image

from ivlkit.data.rows.media import UPRIGHT_ON_WHITE
from ivlkit.errors import CheckpointError
from ivlkit.models.families import FAMILIES, find_model, match_family
from ivlkit.models.processor import load_processor


@pytest.fixture
def changed(tiny, tmp_path):
    """`changed(template="phi3-chat")` → a copy of the tiny folder without weights and with these fields."""

    def change(**fields):
        shutil.copytree(tiny, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
        path = tmp_path / "model" / "config.json"
        config = json.loads(path.read_text()) | fields
        path.write_text(json.dumps({key: value for key, value in config.items() if value != "left out"}))
        return load_processor(tmp_path / "model")

    return change


def test_settings_come_from_the_folder(changed):
    processor = changed(max_dynamic_patch=6, use_thumbnail=False)
    assert (processor.tile_px, processor.num_image_token) == (112, 16)
    assert (processor.max_tiles, processor.min_tiles, processor.use_thumbnail) == (6, 1, False)
    assert processor.count_tiles([(640, 480)]) == [6]
    assert processor.system_message == "You are nano, a small assistant that reads pictures."


def test_the_released_settings(reference):
    for key, template, system in (
        ("26b", "internlm2-chat", "You are an AI assistant whose name is InternLM (书生·浦语)."),
        ("2b", "internlm2-chat", "You are an AI assistant whose name is InternLM (书生·浦语)."),
        ("4b", "phi3-chat", "You are an AI assistant whose name is Phi-3."),
    ):
        processor = load_processor(reference / "checkpoints" / f"internvl-{key}")
        assert (processor.family.key, processor.template.name, processor.system_message) == (key, template, system)
        assert (processor.tile_px, processor.num_image_token, processor.max_tiles) == (448, 256, 12)


def test_a_system_message_of_the_checkpoint_wins(changed):
    assert changed(system_message="Be brief.").system_message == "Be brief."


def test_without_one_it_is_the_templates(changed):
    assert changed(system_message="left out").system_message.startswith(
        "You are an AI assistant whose name is InternLM"
    )


CONVERSATION = """
raise SystemExit("this file is read, never run")
import nowhere
# register_conv_template(Conversation(name='internlm2-chat', system_message='An old one.'))
register_conv_template(Conversation(name='phi3-chat', system_template='<|system|>', system_message='Another.'))
register_conv_template(
    Conversation(
        name='internlm2-chat',
        system_template='<|im_start|>system\\n{system_message}',
        system_message='The folder\\'s own '
        'prompt (书生).',
        roles=('<|im_start|>user\\n', '<|im_start|>assistant\\n'),
        stop_token_ids=[2, 92543],
    )
)
"""


class TestTheFoldersPrompt:
    @pytest.fixture
    def with_code(self, tiny, tmp_path):
        """`with_code(text, name="model", **fields)` → the processor of a copy with this conversation.py."""

        def make(text, *, name="model", **fields):
            folder = tmp_path / name
            shutil.copytree(tiny, folder, ignore=shutil.ignore_patterns("*.safetensors"))
            (folder / "conversation.py").write_text(text, encoding="utf-8")
            config = json.loads((folder / "config.json").read_text()) | fields
            config = {key: value for key, value in config.items() if value is not None}
            (folder / "config.json").write_text(json.dumps(config))
            return load_processor(folder)

        return make

    def test_it_is_read_as_text_and_never_run(self, with_code):
        assert with_code(CONVERSATION, system_message=None).system_message == "The folder's own prompt (书生)."

    def test_what_a_run_wrote_into_config_json_wins(self, with_code):
        assert with_code(CONVERSATION, system_message="Trained.").system_message == "Trained."

    def test_a_file_without_this_template_leaves_the_templates_prompt(self, with_code):
        found = with_code("name = 'internlm2-chat'\nf(name, system_message=name)\n", system_message=None)
        assert found.system_message.startswith("You are an AI assistant whose name is InternLM")

    def test_what_is_no_python_is_named(self, with_code):
        with pytest.raises(CheckpointError, match=r"conversation.py: no Python \(.*copy it again"):
            with_code("register_conv_template(")

    @pytest.mark.parametrize(
        ("said", "name", "fields"),
        [
            ("its system prompt", "model", {}),
            ("its name", "InternVL2-2B", {}),
            ("its name", "model", {"_name_or_path": "OpenGVLab/InternVL2-26B"}),
        ],
    )
    def test_internvl2_is_refused_by_its_prompt_and_by_its_name(self, with_code, said, name, fields):
        prompt = "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, "
        text = CONVERSATION.replace("prompt", prompt) if said == "its system prompt" else CONVERSATION
        with pytest.raises(CheckpointError, match=f"InternVL2 or later, by {said}; expected .*entry in ivlkit/models"):
            with_code(text, name=name, **fields)

    def test_internvl2_8b_is_refused_by_its_sizes(self, changed, tiny_config):
        sizes = {"hidden_size": 4096, "num_hidden_layers": 32}
        with pytest.raises(CheckpointError, match="InternVL2 or later, by its sizes, those of InternVL2-8B"):
            changed(llm_config=tiny_config["llm_config"] | sizes)

    @pytest.mark.parametrize("name", ["InternVL-Chat-V1-5", "Mini-InternVL-Chat-2B-V1-5", "compared-with-InternVL2"])
    def test_our_own_names_are_not(self, with_code, name):
        assert with_code(CONVERSATION, name=name).folder.name == name


def test_tokens_without_a_row_of_the_embeddings_are_refused(changed, tiny_config):
    rows = tiny_config["llm_config"]["vocab_size"]
    with pytest.raises(CheckpointError, match=f"has {rows:,} tokens, its embeddings {rows - 2:,} rows; expected a row"):
        changed(llm_config=tiny_config["llm_config"] | {"vocab_size": rows - 2})


def test_several_pictures_share_the_budget(processor):
    assert processor.count_tiles([(640, 480)]) == [13]
    assert processor.count_tiles([(640, 480), (640, 480)]) == [7, 7]
    assert processor.count_tiles([(640, 480)] * 20) == [1] * 20
    assert (processor.share(12, 5), processor.share(12, 20), processor.share(12, 0)) == (2, 1, 12)


def test_without_dynamic_tiling_a_picture_is_one_tile(changed):
    processor = changed(dynamic_image_size=False)
    assert processor.count_tiles([(640, 480), (10, 900)]) == [1, 1]
    (tile,) = processor.tile(Image.new("RGB", (640, 480)), max_tiles=12)
    assert tile.shape == (112, 112, 3)


def test_a_checkpoint_may_ask_for_pictures_as_the_reference_reads_them(changed, tmp_path):
    from ivlkit.data.encode import encode
    from ivlkit.data.rows.records import Record, Turn

    as_reference = changed(picture_rules="reference")
    clear = Image.new("RGBA", (112, 112), (0, 0, 0, 0))
    row = Record(0, (Turn("user", "<image>"), Turn("assistant", "A")), (clear,))
    assert encode(row, as_reference).tiles.max() == 0
    assert encode(row, replace(as_reference, picture_rules=UPRIGHT_ON_WHITE)).tiles.min() == 255


def test_unknown_picture_rules_are_refused(changed):
    with pytest.raises(CheckpointError, match="picture_rules 'square'; expected one of upright-on-white, reference"):
        changed(picture_rules="square")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"max_dynamic_patch": "12"}, "max_dynamic_patch '12'; expected int, such as 12; correct config.json"),
        ({"max_dynamic_patch": 0}, "max_dynamic_patch 0; expected 1 to 1,000; correct config.json"),
        ({"max_dynamic_patch": 10**9}, "max_dynamic_patch 1000000000; expected 1 to 1,000"),
        ({"min_dynamic_patch": True}, "min_dynamic_patch True; expected int"),
        ({"use_thumbnail": "no"}, "use_thumbnail 'no'; expected bool"),
        ({"system_message": 5}, "system_message 5; expected str"),
        ({"picture_rules": ["reference"]}, "expected str, such as 'upright-on-white'"),
        ({"template": ["phi3-chat"]}, "expected one of internlm2-chat, phi3-chat"),
    ],
)
def test_a_setting_that_is_none_is_refused(changed, fields, said):
    with pytest.raises(CheckpointError, match=said):
        changed(**fields)


def test_a_setting_that_is_null_is_the_default(changed):
    processor = changed(max_dynamic_patch=None, system_message=None)
    assert (processor.max_tiles, processor.system_message) == (12, processor.template.system_message)


def test_count_and_tile_agree_below_min_tiles(changed):
    processor = changed(min_dynamic_patch=4)
    assert processor.count_tiles([(112, 112)]) == [5]
    assert (
        len(processor.tile(Image.new("RGB", (112, 112)), max_tiles=2))
        == processor.count_tiles([(112, 112)], max_tiles=2)[0]
    )


def test_a_template_that_contradicts_the_tokenizer_is_refused(changed):
    with pytest.raises(
        CheckpointError, match=r"template 'phi3-chat' needs the token <\|system\|>, which its tokenizer"
    ):
        changed(template="phi3-chat")


def test_an_internlm2_template_on_phi3_is_refused(reference, tmp_path):
    shutil.copytree(
        reference / "checkpoints" / "internvl-4b", tmp_path / "4b", ignore=shutil.ignore_patterns("*.safetensors")
    )
    (tmp_path / "4b").chmod(0o755)
    path = tmp_path / "4b" / "config.json"
    path.chmod(0o644)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"template": "internlm2-chat"}))
    with pytest.raises(CheckpointError, match=r"template 'internlm2-chat' needs the token <\|im_start\|>"):
        load_processor(tmp_path / "4b")


def test_a_template_that_is_not_known_is_refused(changed):
    with pytest.raises(CheckpointError, match="template 'Hermes-2'; expected one of internlm2-chat, phi3-chat"):
        changed(template="Hermes-2")


def test_a_special_token_that_is_not_there_is_refused(processor):
    with pytest.raises(CheckpointError, match="the tokenizer lacks <video>; expected the released special tokens"):
        processor.token_id("<video>")


def test_a_folder_that_is_not_there_is_refused():
    with pytest.raises(CheckpointError, match="nowhere: no such folder; expected one, or a name: 26b, 2b, 4b, nano"):
        load_processor("nowhere")


def test_a_released_model_that_is_not_here_is_refused_with_the_command_that_fetches_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("IVLKIT_MODELS", raising=False)
    with pytest.raises(CheckpointError) as caught:
        find_model("2b")
    said = "run `ivlkit download 2b` (4.4 GB, about 6 minutes at 100 Mbit/s), or give its folder (a notebook's MODEL)"
    assert str(caught.value).endswith(said)


def test_a_notebook_finds_the_released_models_of_its_checkout(tmp_path, monkeypatch):
    downloaded = tmp_path / "pretrained" / "InternVL-Chat-V1-5"
    downloaded.mkdir(parents=True)
    (downloaded / "config.json").write_text("{}")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert find_model("26b").resolve() == downloaded


def test_released_models_are_found_under_pretrained_or_where_the_variable_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shared = tmp_path / "shared" / "InternVL-Chat-V1-5"
    shared.mkdir(parents=True)
    (shared / "config.json").write_text("{}")
    monkeypatch.setenv("IVLKIT_MODELS", str(tmp_path / "shared"))
    assert find_model("26b") == shared
    own = tmp_path / "pretrained" / "InternVL-Chat-V1-5"
    own.mkdir(parents=True)
    (own / "config.json").write_text("{}")
    assert find_model("26b").resolve() == own


def test_a_family_of_another_kind_is_refused(tiny_config):
    tiny_config["force_image_size"] = 448
    tiny_config["llm_config"]["architectures"] = ["Qwen2ForCausalLM"]
    with pytest.raises(
        CheckpointError, match="a model of Qwen2ForCausalLM with a layer_norm vision tower; expected one"
    ):
        match_family(tiny_config)


def test_families_hold_what_was_released():
    assert {key: family.hub_id for key, family in FAMILIES.items()} == {
        "26b": "OpenGVLab/InternVL-Chat-V1-5",
        "2b": "OpenGVLab/Mini-InternVL-Chat-2B-V1-5",
        "4b": "OpenGVLab/Mini-InternVL-Chat-4B-V1-5",
        "nano": None,
    }
    assert FAMILIES["4b"].language_lora_targets == ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
    assert FAMILIES["2b"].name == "Mini-InternVL-Chat-2B-V1-5"
