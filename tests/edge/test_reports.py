"""The report of runs in a browser, and the command that writes it."""

import base64
import io
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import plotly.graph_objects as go
import pytest
from made import run
from PIL import Image

from ddpm.commands import cli
from ddpm.lit.callbacks import throughput
from ddpm.lit.callbacks.samples import Samples
from ddpm.lit.module import DDPM
from ddpm.reporting import command, figures
from ddpm.reporting.cells import cells
from ddpm.reporting.contents import Curve
from ddpm.reporting.figures import mean_and_error, ordered, shortened
from ddpm.reporting.page import GRID_BYTES, picture_url
from ddpm.reporting.runs import found

CHROMIUM = Path("/usr/bin/chromium")
V = ("parameterization._target_", "ddpm.parameterization.v.V")
ATTACK = "</script><script>hacked=1</script><img src=x onerror=hacked=1>\"'><b id=hacked>{{7*7}}"


def report(*arguments):
    command.report([*map(str, arguments)], "python train.py")


@pytest.fixture(scope="module")
def browser():
    """Chromium, without a display."""
    if not CHROMIUM.exists():
        pytest.fail(f"there is no {CHROMIUM}; install it: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def opened(browser):
    """(file, width) -> the page in a browser without a network, with what it asked for and complained about."""

    def open(file, width=1400, **options):
        page = browser.new_page(viewport={"width": width, "height": 900}, **options)
        page.asked, page.errors = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("console", lambda said: page.errors.append(said.text) if said.type in ("error", "warning") else None)
        page.goto(file.as_uri())
        return page

    return open


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The report of two configurations with three seeds each, one with one seed, and one run that goes on."""
    folder = tmp_path_factory.mktemp("reports")
    sampler = {"_target_": "ddpm.sampler.ddim.DDIM"}
    for seed in range(3):
        values = [
            {"samples": {"n": n, "fid": 3 + 10 / n, "features": "x", "sampler": sampler, "steps": 50}} for n in (10, 99)
        ]
        run(folder / f"a{seed}", seed, metrics={"fid": 3 + 0.01 * seed}, evaluations=values, typed=["loss=simple"])
        run(folder / f"b{seed}", seed, options=[V], metrics={"fid": 5 + 0.1 * seed}, typed=["parameterization=v"])
    run(folder / "c0", 0, options=[("schedule.T", 100)], metrics={"fid": 12.5})
    run(folder / "d0", 0, options=[("schedule.T", 10)], finished=False, steps=range(10, 101, 10))
    report(folder)
    return folder / "report.html"


@pytest.fixture(scope="module")
def first(written, opened):
    """The page of that report, opened once."""
    return opened(written)


@pytest.fixture
def page(first):
    """The page with nothing chosen."""
    first.evaluate("changed({filter: '', axis: 'steps', scale: 'log', sort: null, more: false, hidden: []})")
    return first


def column(page, name):
    """The shown cells of a column of the table."""
    index = page.locator("#results th").evaluate_all(
        "(all, name) => all.findIndex(th => th.innerText.startsWith(name))", name
    )
    return page.locator(f"#results tbody tr:not([hidden]) td:nth-child({index + 1})").all_inner_texts()


# ---------------------------------------------------------------- the page


def test_the_page_opens_without_errors_and_asks_for_nothing(page, written):
    page.get_by_text("More curves").click()
    assert page.locator(".plot .main-svg").count() > 8
    assert page.errors == []
    assert [url for url in page.asked if not url.startswith(("data:", "blob:"))] == [written.as_uri()]
    assert "http-equiv" in written.read_text()[:600]


def test_the_table_shows_means_errors_and_which_cells_cannot_be_told_apart(page):
    assert column(page, "FID") == ["3.010 ± 0.006", "5.10 ± 0.06", "12.50", "9.000"]
    assert page.locator("#results .best").first.inner_text() == "3.010 ± 0.006"
    assert page.locator("#results td", has_text="5.10").get_attribute("title").count("paired over the same seeds") == 1
    assert "no error can be given" in page.locator("main").inner_text()
    assert "unfinished" in column(page, "seeds")[3]


def test_a_column_sorts_by_value_in_both_directions(page):
    page.locator("#results .sort", has_text="FID").first.click()
    assert column(page, "FID") == ["3.010 ± 0.006", "5.10 ± 0.06", "9.000", "12.50"]
    page.locator("#results .sort", has_text="FID").first.click()
    assert column(page, "FID") == ["12.50", "9.000", "5.10 ± 0.06", "3.010 ± 0.006"]
    page.locator("#results .sort", has_text="schedule.T").click()
    assert column(page, "schedule.T") == ["10", "100", "1000", "1000"]


def test_the_filter_hides_configurations_in_the_table_the_curves_and_the_list(page):
    lines = page.locator("[data-plot='0'] .scatterlayer .trace").count()
    page.get_by_role("searchbox").fill("parameterization=v seed=1")
    assert column(page, "parameterization") == ["v"]
    assert page.locator("article:visible").count() == 3
    assert 0 < page.locator("[data-plot='0'] .scatterlayer .trace").count() < lines
    page.get_by_role("searchbox").fill("nothing like it")
    assert column(page, "parameterization") == []
    assert page.get_by_text("No configuration matches").is_visible()


def test_curves_can_be_drawn_against_time(page):
    longest = "document.querySelector('[data-plot=\"0\"]')._fullData.map(trace => Math.max(...trace.x))"
    assert max(page.evaluate(longest)) == 300
    page.get_by_role("button", name="time", exact=True).click()
    assert max(page.evaluate(longest)) == pytest.approx(300 / 50 * 1.2 / 60)


def test_what_was_chosen_outlives_a_reload_and_the_page_fits_a_phone_in_light_and_dark(written, opened):
    page = opened(written, 400, color_scheme="dark")
    assert page.locator("html").get_attribute("data-theme") == "dark"
    page.get_by_role("searchbox").fill("parameterization=v")
    page.locator("#theme").click()
    page.reload()
    assert column(page, "parameterization") == ["v"]
    assert page.locator("html").get_attribute("data-theme") == "light"
    page.get_by_text("More curves").click()
    page.get_by_text("options that all runs share").click()
    page.locator("#more").click()
    assert page.evaluate("document.documentElement.scrollWidth") == 400


def test_a_print_fits_the_sheet_in_light_colours_and_leaves_the_page_as_it_was(page):
    width = page.evaluate("document.querySelector('[data-plot]').clientWidth")
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 718, "height": 1000})
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("document.documentElement.scrollWidth") == 718
    assert page.locator("html").get_attribute("data-theme") == "light"
    page.emulate_media(media="screen")
    page.set_viewport_size({"width": 1400, "height": 900})
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate("document.querySelector('[data-plot]').clientWidth") == width


def test_the_command_of_a_run_can_be_copied(page):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("article", has_text="parameterization=v").first.get_by_role("button").click()
    assert page.evaluate("navigator.clipboard.readText()") == "python train.py seed=0 parameterization=v"


@pytest.mark.parametrize("policy", [True, False])
def test_a_hostile_run_puts_no_script_into_the_page(tmp_path, opened, policy):
    """Even without the policy that forbids it."""
    folder = run(
        tmp_path / ATTACK.replace("/", "_"),
        options=[("schedule.T", ATTACK), (ATTACK.replace(".", ""), ATTACK)],
        metrics={ATTACK: 1.0},
        typed=[ATTACK],
        log=f"Traceback (most recent call last):\n  x\nValueError: {ATTACK}\n",
        finished=False,
        evaluations=[{"nll": {"n": 3, ATTACK: 1.5, "split": ATTACK, "warnings": [ATTACK]}, "weights": ATTACK}],
    )
    text = (folder / "metrics.csv").read_text()
    quoted = ATTACK.replace('"', '""')
    (folder / "metrics.csv").write_text(text.replace("train/loss", f'"{quoted}"'))
    run(tmp_path / "other", options=[("schedule.T", "b")])
    report(tmp_path, "--out", tmp_path / "out.html")
    plots = figures.training(cells(found([tmp_path])[0]))
    traces = [trace for plot in plots for trace in plot.variants["steps"]["data"]]
    assert not any("<img" in trace["hovertemplate"] for trace in traces)  # which plotly.js takes for its own markup
    html = (tmp_path / "out.html").read_text()
    if not policy:
        html = re.sub("<meta http-equiv.*?>", "", html, count=1)
        (tmp_path / "out.html").write_text(html)
    page = opened(tmp_path / "out.html")
    page.locator("[data-plot='0'] .nsewdrag").first.hover()
    assert page.evaluate("typeof hacked") == "undefined"
    assert page.locator("#hacked, img[src=x]").count() == 0
    assert "{{7*7}}" in page.locator("main").inner_text()
    assert page.errors == []


def test_a_command_with_control_characters_is_not_offered(tmp_path):
    run(tmp_path / "a", typed=["x=\x1b[201~rm"])
    report(tmp_path)
    html = (tmp_path / "report.html").read_text()
    assert "\x1b" not in html
    assert '<button class="copy">' not in html


# ---------------------------------------------------------------- the command


def test_the_command_says_what_it_read_and_where_the_file_is(tmp_path, capsys, monkeypatch):
    run(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ddpm", "report", ".", "--out", "x/y.html"])
    cli.main()
    said = capsys.readouterr().out
    assert re.fullmatch(r"report: 1 runs \(1 finished\) in 1 configurations -> x/y.html \(\d\.\d MB\)\n", said)
    assert "ddpm train seed=0" in Path("x/y.html").read_text()


def test_a_link_in_place_of_the_report_is_replaced_not_followed(tmp_path):
    run(tmp_path / "a")
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "report.html").symlink_to(tmp_path / "mine")
    report(tmp_path)
    assert (tmp_path / "mine").read_text() == "mine"
    assert not (tmp_path / "report.html").is_symlink()


def test_watching_writes_again_what_has_changed_and_ends_with_a_page_that_rests(tmp_path, capsys, monkeypatch):
    folder = run(tmp_path / "a", finished=False, steps=range(10, 101, 10))
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        if len(slept) == 2:
            raise KeyboardInterrupt
        html = (tmp_path / "report.html").read_text()
        assert '"refresh": 5.0' in html
        assert "step 100 of 300" in html
        with (folder / "metrics.csv").open("a") as file:
            file.write("110,2.2,0.5,,,,\n")

    monkeypatch.setattr(command, "time", SimpleNamespace(sleep=sleep))
    with pytest.raises(KeyboardInterrupt, match="is the last report"):
        report(tmp_path, "--watch", "5")
    html = (tmp_path / "report.html").read_text()
    assert slept == [5, 5]
    assert '"refresh": null' in html
    assert "step 110 of 300" in html


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--watch", "0"], "--watch must be at least 1 second, got 0"), (["--out", "."], "is a folder")],
)
def test_wrong_options_are_refused_before_anything_is_read(tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=re.escape(said)):
        report("nowhere", *arguments)


@pytest.mark.slow
def test_help_is_shown_without_importing_torch():
    code = (
        "import sys; sys.argv = ['report.py', '--help']; from ddpm.commands import cli\n"
        "try: cli.report()\n"
        "finally: print(*{'torch', 'lightning'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "--watch" in done.stdout
    assert done.stdout.splitlines()[-1] == ""


@pytest.mark.slow
def test_thirty_long_runs_with_large_grids_are_a_small_page_in_seconds(tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (128, 128, 3), np.uint8)).resize((512, 512))
    for cell in range(10):
        for seed in range(3):
            folder = run(
                tmp_path / f"{cell}_{seed}", seed, options=[("schedule.T", cell)], steps=range(50, 100_001, 50)
            )
            picture.save(folder / "samples" / "step_0000300.png")
    start = time.process_time()
    report(tmp_path)
    assert time.process_time() - start < 20
    assert (tmp_path / "report.html").stat().st_size < 15e6


# ---------------------------------------------------------------- curves and pictures


def test_every_figure_is_one_that_plotly_accepts(tmp_path):
    terms = {"nll": {"n": 3, "bits_per_dim": 3.0}}
    np.savez(run(tmp_path / "a", 0, evaluations=[terms]) / "evaluate_0" / "terms.npz", terms=np.ones((3, 9)))
    run(tmp_path / "b", 1)
    groups = cells(found([tmp_path])[0])
    plots = figures.training(groups) + figures.evaluated(groups)
    assert [plot.title for plot in plots][-1] == "Terms of the bound"
    for plot in plots:
        for variant in plot.variants.values():
            assert go.Figure(variant).to_plotly_json()["data"]


def test_the_mean_is_taken_where_all_seeds_have_values():
    x = np.arange(6.0)
    mean, error = mean_and_error([Curve(x, x, x), Curve(x[2:], 3 * x[2:], 3 * x[2:])])
    assert mean.key.tolist() == [2, 3, 4, 5]
    assert mean.y.tolist() == [4, 6, 8, 10]
    assert error.tolist() == pytest.approx([2, 3, 4, 5])  # |a - b| / 2
    assert mean_and_error([Curve(x, x, x)]) is None


def test_a_long_curve_keeps_its_mean_and_a_resumed_one_its_last_values():
    x = np.arange(1001.0)
    short = shortened(Curve(x, x, x**2), 100)
    assert len(short.x) <= 100
    assert np.average(short.y, weights=[11] * 91) == pytest.approx(np.mean(x**2))
    again = ordered(Curve(*(np.array([1.0, 2.0, 3.0, 2.0, 3.0]),) * 2, np.array([1.0, 2.0, 3.0, 20.0, 30.0])))
    assert again.y.tolist() == [1, 20, 30]


def test_a_picture_is_kept_exactly_if_it_is_small_and_made_small_if_it_is_not(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (256, 256, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    whole, small = (picture_url(data, most)["url"].partition(",")[2] for most in (GRID_BYTES, 30_000))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(whole)))), noise)
    assert len(small) * 3 / 4 <= 30_000
    assert picture_url(b"no picture", 100) is None


# ---------------------------------------------------------------- the clock of a run


def test_the_training_time_leaves_out_what_is_not_training_and_goes_on_when_a_run_is_resumed(
    train, tmp_path, tiny, monkeypatch
):
    clock = SimpleNamespace(now=0.0)

    def takes(kind, name, seconds):
        original = getattr(kind, name)

        def slow(*arguments):
            clock.now += seconds
            return original(*arguments)

        monkeypatch.setattr(kind, name, slow)

    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    takes(DDPM, "training_step", 1)
    takes(DDPM, "validation_step", 1000)
    takes(Samples, "run", 1000)
    base = [*(each for each in tiny if "callbacks." not in each), "callbacks=[throughput,samples,checkpoint]"]
    options = ["callbacks.samples.n=2", "callbacks.samples.every_n_steps=7", "callbacks.checkpoint.every_n_steps=3"]
    first = train(tmp_path / "a", *options, "trainer.max_steps=5", base=base)
    again = train(tmp_path / "b", *options, "trainer.max_steps=9", f"ckpt={tmp_path}/a/last.ckpt", base=base)
    assert (first.module.results["seconds"], again.module.results["seconds"]) == (5, 9)
    assert first.module.results["images_per_second"] == again.module.results["images_per_second"] == 16
    for folder, steps in (("a", [2, 4]), ("b", [6, 8])):
        header, *rows = [line.split(",") for line in (tmp_path / folder / "metrics.csv").read_text().splitlines()]
        logged = [dict(zip(header, row, strict=True)) for row in rows]
        timed = [(float(row["step"]), float(row["seconds"])) for row in logged if row["seconds"]]
        assert timed == [(step, step) for step in steps]
