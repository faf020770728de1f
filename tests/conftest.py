"""What several rooms' tests share: a tiny model, drawn pictures, the outputs of the reference implementation."""

import copy
import json
import os
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

# As ivlkit does it, but before a plugin can import torch: spinning threads are slow beside a busy program.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
_workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
if _workers > 1:  # each with its share of the cores, and so what it starts: more threads than cores are slow
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // _workers)))
# What tests expect are a CPU's figures in float32, also on a machine with a graphics card; one test asks for the card.
if not os.environ.get("IVLKIT_TEST_GPU"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.pop("HF_HUB_OFFLINE", None)  # the hub of the tests is on this machine

# What `make test` leaves to `make test-slow`: over five seconds each, and no other kind of thing than what stays.
SLOW = (
    "browser/",  # JupyterLab in a real browser
    "factory/",  # nano made again, and what it was taught
    "nano/test_curriculum.py",
    "test_demo.py::test_the_demo",
    "test_readme.py::test_every_command",
    "test_readme.py::test_the_ten_lines",
    "test_layout.py::TestPublicNames::test_every_one_is_callable",  # fresh processes
    "models/test_native_layout.py::test_a_fresh_process",
    "models/test_serving.py",  # a server
    "models/test_export.py::test_killed_at_any_moment",  # kill matrices
    "models/test_export.py::test_writing_holds_less",
    "training/test_checkpoints.py::test_a_run_that_is_killed_or_damaged_ends_with_the_bits_of_an_undisturbed_one[nano-lora",
    "training/test_runs.py::test_a_child_is_stopped",
    "training/test_validation.py::test_a_run_that_died_validates_and_gives_up_as_if_it_had_not[1]",
    "training/test_validation.py::test_a_run_that_died_validates_and_gives_up_as_if_it_had_not[2]",
    "training/test_validation.py::test_a_run_that_died_validates_and_gives_up_as_if_it_had_not[3]",
    "training/test_distributed.py::test_the_benchmark_runs",
    "training/test_distributed.py::test_every_launcher",
    "training/test_layers.py::test_bins_of_one_sample",  # compile matrices; one compiled case stays
    "training/test_layers.py::test_compiled_bins",
    "training/test_layers.py::test_compiled_steps_are_the_plain_ones_and_nothing_is_compiled_twice[lora recomputed",
    "training/test_layers.py::test_compiled_steps_are_the_plain_ones_and_nothing_is_compiled_twice[lora, tower",
    "training/test_layers.py::test_compiled_steps_are_the_plain_ones_and_nothing_is_compiled_twice[full",
    "training/test_layers.py::test_the_time_that_compiling",
    "training/test_layers.py::test_a_loss_under",
    "training/test_float8_weights.py::test_compiled_layers",
    "training/test_overfit.py::test_answers_that_belong_to_other_pictures_are_learned_by_heart",
    "training/test_overfit.py::test_the_benchmark",
    "training/test_suggest.py::test_where_only_fewer_tiles",
    "training/test_suggest.py::test_the_card_decides_how_it_computes_and_not_what_it_sees[26b",
    "training/test_runs.py::test_a_run_goes_on_from_a_run",
    "nano/test_model.py::test_it_looks",
    "evaluation/test_evaluate.py::test_an_evaluation_killed",
    "evaluation/test_evaluate.py::test_the_measured_speeds",
    "evaluation/test_curve.py::test_each_size",
    "evaluation/test_exports_of_tools.py",
    "evaluation/test_sweep.py::TestOfRuns::test_killed",
    "evaluation/test_confidence.py::TestCalibration::test_the_temperature",
    "test_agents.py::test_its_code_leads",
)
REFERENCE = "IVLKIT_REFERENCE"  # names the folder; else it is looked for beside the repository


@pytest.hookimpl(tryfirst=True)  # before -k and -m choose
def pytest_collection_modifyitems(config, items):
    """Mark what is slow. Raises: UsageError for a name of it that is no test's any more."""
    found = set()
    for item in items:
        name = item.nodeid.removeprefix("tests/")
        matched = [slow for slow in SLOW if name.startswith(slow)]
        found.update(matched)
        if matched:
            item.add_marker("slow")
    whole = {item.nodeid.removeprefix("tests/").split("::")[0] for item in items}
    for slow in SLOW:
        file = slow.split("::")[0]
        if slow not in found and file in whole and not any("::" in argument for argument in config.args):
            raise pytest.UsageError(f"tests/conftest.py: SLOW names {slow}, which is no test; remove it there")


@pytest.fixture(scope="session")
def reference():
    """Folder of outputs of the reference implementation; a test that needs it is skipped only where there is none."""
    named = os.environ.get(REFERENCE)
    folder = Path(named) if named else Path(__file__).parents[2] / "shared" / "upstream"
    if not folder.is_dir():
        if named:
            pytest.fail(f"${REFERENCE} is {named}, which is no folder")
        pytest.skip(f"no outputs of the reference implementation here; put their folder into ${REFERENCE}")
    return folder


@pytest.fixture(scope="session")
def _tiny_config():
    from random_nano import CONFIG

    config = copy.deepcopy(CONFIG)
    config["llm_config"] |= {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 2,
    }
    config["vision_config"] |= {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
    }
    return config


@pytest.fixture
def tiny_config(_tiny_config):
    """A config.json of the released kind: 112 px tiles of 16 tokens, two layers everywhere. Yours to change."""
    return copy.deepcopy(_tiny_config)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, _tiny_config):
    """Folder of a random model of that configuration in the released layout, with nano's tokenizer. Don't write."""
    from random_nano import build

    return build(tmp_path_factory.mktemp("tiny") / "model", config=_tiny_config)


@pytest.fixture(scope="session")
def processor(tiny):
    """Its processor."""
    from ivlkit.models.processor import load_processor

    return load_processor(tiny)


@pytest.fixture(scope="session")
def tiny_vlm(tiny):
    """The model, loaded once. Don't change it."""
    from ivlkit.models.load import load

    return load(tiny)


@pytest.fixture(scope="session")
def draw_picture():
    """`draw_picture(width_px, height_px, seed=0)` → an RGB picture of a few shapes."""

    def draw(width_px=224, height_px=112, *, seed=0):
        image = Image.new("RGB", (width_px, height_px), (40 + 29 * seed % 200, 90, 160))
        pen = ImageDraw.Draw(image)
        pen.ellipse(
            (width_px // 8, height_px // 8, width_px // 2, height_px // 2), fill=(230, 60 + 17 * seed % 150, 30)
        )
        pen.line((0, height_px - 1, width_px - 1, seed % height_px), fill=(255, 255, 255), width=3)
        return image

    return draw


@pytest.fixture
def write_rows(tmp_path):
    """`write_rows([row, …], "train.jsonl")` → the path of a JSONL in the test's own folder."""

    def write(rows, name="train.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def turns():
    """`turns("Q", "A", …)` → the `conversations` of a row, human first."""

    def make(*values):
        return [{"from": ("human", "gpt")[number % 2], "value": value} for number, value in enumerate(values)]

    return make


@pytest.fixture
def mixed_rows(write_rows, turns, draw_picture, tmp_path):
    """A JSONL of seven rows of unequal length: pictures of one and of three tiles, and text alone."""
    for number in range(7):
        draw_picture(112 + 112 * (number % 2), 112, seed=number).save(tmp_path / f"{number}.png")
    return write_rows(
        [
            ({} if number == 3 else {"image": f"{number}.png"})
            | {"conversations": turns("Q", "word " * (number % 3) + str(number))}
            for number in range(7)
        ]
    )


@pytest.fixture
def shaped(tiny_config):
    """`shaped("2b" | "4b" | "26b")` → a random model of two layers built like that release; image token 99."""

    def make(name):
        import torch

        from ivlkit.models.layouts.configuration import hf_config
        from ivlkit.models.modeling.internvl import ReleasedInternVLForConditionalGeneration

        language = tiny_config["llm_config"]
        if name == "26b":
            tiny_config["vision_config"] |= {"norm_type": "rms_norm", "qk_normalization": True, "qkv_bias": False}
        if name == "4b":
            language |= {
                "architectures": ["Phi3ForCausalLM"],
                "max_position_embeddings": 131072,
                "num_key_value_heads": 4,
            }
            language |= {"rope_scaling": {"type": "su", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}}
        torch.manual_seed(0)
        return ReleasedInternVLForConditionalGeneration(hf_config(tiny_config, image_token_id=99))

    return make
