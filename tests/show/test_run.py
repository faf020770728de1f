"""A run's curves and numbers from its log, and watching it: live, stopped, failed, started again."""

import asyncio
import importlib.util
import time

import pytest

from ivlkit.errors import TrainingError
from ivlkit.evaluation.trials.sweep import Sweep
from ivlkit.show import run as show_run
from ivlkit.show.run import duration_text, run_figure, run_html, seconds_left, sweep_figure, token_rates, watch
from ivlkit.training.run import Run

WIDGETS = importlib.util.find_spec("ipywidgets") is not None


def make_history(steps, *, total=10, pace=2.0, **other):
    return [
        {"step": n, "steps": total, "loss": 4.0 / n, "learning_rate": 1e-3, "seconds": pace * n, "tokens": 100 * n}
        | {"memory_gib": 1.5}
        | other
        for n in range(1, steps + 1)
    ]


def titles(figure):
    return [axes.get_title() for axes in figure.axes]


class TestCurves:
    def test_the_mean_starts_at_the_first_value(self):
        lines = run_figure("run", make_history(3, loss=4.0)).axes[0].lines
        assert list(lines[1].get_ydata()) == pytest.approx([4.0, 4.0, 4.0])

    def test_every_number_that_was_logged_has_a_panel(self):
        figure = run_figure("a run", make_history(5))
        assert titles(figure) == ["loss", "learning rate", "tokens a second", "memory, GiB"]
        assert figure.alt == "loss of a run: from 4.000 to 0.800 in 5 steps"

    def test_a_log_of_loss_alone_has_one_panel(self):
        history = [{"step": n, "steps": 3, "loss": 1.0, "seconds": float(n)} for n in (1, 2, 3)]
        assert titles(run_figure("old", history)) == ["loss"]

    def test_a_single_number_is_seen(self):
        rate = run_figure("run", make_history(2)).axes[2].lines[0]
        assert list(rate.get_xdata()) == [2] and rate.get_marker() == "o"

    def test_tokens_a_second_are_those_of_a_step(self):
        assert token_rates(make_history(3)) == [(2, 50.0), (3, 50.0)]

    def test_a_start_after_a_break_has_no_rate_and_no_pace(self):
        first, again = make_history(3), make_history(2, pace=1.0)
        history = [*first, *({**line, "step": line["step"] + 3} for line in again)]
        assert token_rates(history) == [(2, 50.0), (3, 50.0), (5, 100.0)]

    def test_the_time_left_is_the_latest_pace_times_the_steps_left(self):
        assert seconds_left(make_history(4)) == 12.0
        assert seconds_left(make_history(1)) is None

    @pytest.mark.parametrize(("seconds", "text"), [(45, "45 s"), (89, "89 s"), (720, "12 min"), (12_000, "3 h 20 min")])
    def test_durations_are_said_in_their_unit(self, seconds, text):
        assert duration_text(seconds) == text


@pytest.fixture
def make_run(tmp_path, monkeypatch):
    """`make_run(states, error="")` → a run that is in these states one after the other, four steps into its log."""

    def make(states, *, error=""):
        (tmp_path / "run.yaml").write_text("{}")
        run, left = Run(tmp_path), list(states)
        monkeypatch.setattr(Run, "state", property(lambda _: left.pop(0) if len(left) > 1 else left[0]))
        monkeypatch.setattr(Run, "history", property(lambda _: make_history(4)))
        monkeypatch.setattr(Run, "error", property(lambda _: error or None))
        return run

    return make


@pytest.fixture
def shown(monkeypatch):
    """What was displayed, in order; updates of an output too."""
    found = []

    class Handle:
        def update(self, value, **_):
            found.append(value)

    def display(value, **options):
        found.append(value)
        return Handle() if options.get("display_id") else None

    monkeypatch.setattr("IPython.display.display", display)
    monkeypatch.setattr("IPython.get_ipython", lambda: "a notebook's shell")
    monkeypatch.setattr(show_run, "REDRAWN_EVERY_SECONDS", 0.01)
    return found


class TestWatching:
    def test_it_redraws_until_the_run_ends_and_leaves_its_last_state(self, make_run, shown):
        watch(make_run(["running"] * 6 + ["finished"]), every_seconds=0.01)
        pages = [each["text/html"] for each in shown if "text/html" in each]
        assert len(pages) >= 3 and "left" in pages[0]
        assert "finished" in pages[-1] and ">left<" not in pages[-1] and 'alt="loss of' in pages[-1]

    def test_what_should_be_known_of_a_run_stands_above_its_curves(self, make_run):
        run = make_run(["finished"])
        (run.folder / "notices.txt").write_text("2 rows were masked\n")
        assert "2 rows were masked" in run_html(run)

    def test_drawing_takes_a_tenth_of_the_time_at_most(self, make_run, shown, monkeypatch):
        monkeypatch.setattr(show_run, "run_html", lambda _: time.sleep(0.02) or "drawn")
        began = time.monotonic()
        watch(make_run(["running"] * 200 + ["finished"]), every_seconds=0.001)
        drawn = sum(each.get("text/html") == "drawn" for each in shown)
        assert 3 <= drawn <= 3 + (time.monotonic() - began) / 0.2  # the first, the last, and one at once

    def test_the_stop_button_asks_the_run_to_stop_once(self, make_run, shown, monkeypatch):
        pytest.importorskip("ipywidgets")
        asked, controls = [], []
        monkeypatch.setattr(Run, "request_stop", lambda run: asked.append(run))
        monkeypatch.setattr("ivlkit.show.live.show_controls", controls.extend)
        run = make_run(["stopped"])
        watch(run, every_seconds=0.01)
        assert controls[0].disabled  # the run has ended
        controls[0].disabled = False
        controls[0].click()
        assert asked == [run] and controls[0].disabled

    def test_a_run_that_failed_raises_its_reason_and_shows_it_as_text(self, make_run, shown):
        with pytest.raises(TrainingError, match="alert"):
            make_run(["failed"], error="<script>alert(1)</script>").watch()
        assert "<script>" not in shown[-1]["text/html"] and "&lt;script&gt;" in shown[-1]["text/html"]

    def test_interrupting_leaves_a_picture_and_the_run_alone(self, make_run, shown, monkeypatch):
        monkeypatch.setattr(Run, "request_stop", lambda _: pytest.fail("the run was asked to stop"))

        async def cell():
            watching = watch(make_run(["running"]), every_seconds=0.01)
            asyncio.get_running_loop().call_later(0.1, watching.task.cancel)
            await watching

        with pytest.raises(asyncio.CancelledError):
            asyncio.run(cell())
        assert 'alt="loss of' in shown[-1]["text/html"]

    def test_a_cell_is_free_at_once_or_waits_for_the_end(self, make_run, shown):
        async def cells():
            watching = make_run(["running"] * 4 + ["finished"]).watch()
            first = len(shown)
            await watching
            return first, len(shown)

        first, last = asyncio.run(cells())
        assert first == (2 if WIDGETS else 1) and last > first
        assert "finished" in shown[-1]["text/html"]

    def test_in_a_script_it_is_a_bar_of_progress(self, make_run, capfd):
        make_run(["running", "finished"]).watch()
        printed = capfd.readouterr()
        assert printed.out == "" and "4/10" in printed.err
        with pytest.raises(TrainingError, match="no memory"):
            make_run(["failed"], error="no memory").watch()

    def test_before_the_first_step_it_says_what_it_waits_for(self, make_run, monkeypatch):
        run = make_run(["running"])
        monkeypatch.setattr(Run, "history", property(lambda _: []))
        assert "the first steps follow" in run_html(run)


class TestAnswers:
    def sample(self, step, *replies, **measured):
        answers = [
            {"where": f"a:{n}", "question": "<image>\nWhat?", "truth": "7", "reply": reply, "right": reply == "7"}
            for n, reply in enumerate(replies)
        ]
        return {"step": step, "answers": answers, **measured}

    def test_free_answers_are_told_from_tokens_after_the_truth(self, make_run, monkeypatch):
        run = make_run(["running"])
        monkeypatch.setattr(Run, "samples", property(lambda _: [self.sample(0, "x")]))
        forced = run_html(run)
        assert "Training rows: the next token, not an answer" in forced and "greedy" not in forced
        monkeypatch.setattr(Run, "samples", property(lambda _: []))
        found = [self.sample(0, "x", loss=2.5, score=None), self.sample(4, "7", loss=0.125, score=1.0)]
        monkeypatch.setattr(Run, "validation", property(lambda _: found))
        free = run_html(run)
        assert "Validation: answers to rows that are not trained on" in free and "the next token" not in free
        assert free.index("loss 2.500") < free.index("loss 0.125<br>score 1.000")
        assert "in validation from 2.500 to 0.125" in free

    def test_losses_of_validation_are_dots_beside_those_of_training(self):
        figure = run_figure("a run", make_history(5), [self.sample(0, "x", loss=2.5), self.sample(4, "x", loss=0.5)])
        dots = figure.axes[0].lines[-1]
        assert (list(dots.get_xdata()), list(dots.get_ydata())) == ([0, 4], [2.5, 0.5])
        assert [text.get_text() for text in figure.axes[0].get_legend().texts] == ["training", "validation"]

    def test_answers_turn_from_wrong_to_right_in_the_order_of_steps(self, make_run, monkeypatch):
        found = [self.sample(0, "x", "<script>"), self.sample(5, "7", "y")]
        monkeypatch.setattr(Run, "samples", property(lambda _: found))
        html = run_html(make_run(["running"]))
        assert html.index("step 0") < html.index("step 5")
        assert html.count("✓") == 1 and html.count("✗") == 3 and "<script>" not in html

    def test_of_many_steps_six_are_shown_from_the_first_to_the_latest(self, make_run, monkeypatch):
        monkeypatch.setattr(Run, "samples", property(lambda _: [self.sample(n, "x") for n in range(0, 100, 10)]))
        html = run_html(make_run(["running"]))
        assert [n for n in range(0, 100, 10) if f"step {n}<" in html] == [0, 20, 40, 50, 70, 90]


class TestSweep:
    def test_in_a_notebook_the_curves_of_all_runs_are_one_picture_until_each_ends(self, make_run, shown):
        first, second = make_run(["finished"]), make_run(["running"] * 3 + ["finished"])
        sweep = Sweep("learning_rate", {1e-4: first, 2e-4: second})

        async def cell():
            sweep._follow(first)
            sweep._follow(second)

        asyncio.run(cell())
        pages = [each["text/html"] for each in shown]
        assert len(pages) >= 3 and all(page.count('alt="losses by learning_rate') == 1 for page in pages)

    def test_a_run_that_fails_ends_the_wait_and_not_the_sweep(self, make_run, capsys):
        run = make_run(["failed"], error="loss nan at step 3")
        sweep = Sweep("learning_rate", {1e-1: run})
        sweep._follow(run)
        assert sweep.said == "learning_rate: no run has ended; 0.1 failed: loss nan at step 3"

    def test_a_line_is_a_run_and_its_dots_are_validations(self, make_run, monkeypatch):
        run = make_run(["finished"])
        monkeypatch.setattr(Run, "validation", property(lambda _: [{"step": 0, "loss": 2.5}, {"step": 4, "loss": 0.5}]))
        losses, validation = sweep_figure(Sweep("epochs", {1: run, 2: run})).axes
        assert len(losses.lines) == 2 and list(losses.lines[0].get_xdata()) == [1, 2, 3, 4]
        assert [list(line.get_ydata()) for line in validation.lines] == [[2.5, 0.5]] * 2
        assert [text.get_text() for text in validation.get_legend().texts] == ["1", "2"]
