import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics
from scipy import special

import evaluate
from evaluation import bootstrap, figures, metrics, report, small_sample
from evaluation.evaluation import Evaluation
from images import audit, data_plots
from safety.errors import InputError
from training import checkpoint, decision, environment

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# Asks the page, in a frame as wide as a phone, what a reader's eye would ask.
PHONE = """<body style="margin:0"><iframe id="page" src="{page}" width="390" height="800"></iframe><script>
onload = () => {{
  const page = document.getElementById("page").contentDocument, images = [...page.images];
  const found = {{wide: page.documentElement.scrollWidth, images: images.length,
    loaded: images.filter(one => one.complete && one.naturalWidth > 0).length,
    unnamed: images.filter(one => !one.alt).length, scripts: page.scripts.length,
    foreign: [...page.querySelectorAll("[src],link")].filter(one => !(one.src || "").startsWith("data:")).length}};
  document.body.replaceChildren("found" + JSON.stringify(found) + "end");
}};</script></body>"""


@pytest.fixture(scope="module")
def evaluated(run):
    """The evaluation of the tiny run, from its files."""
    folder = run / "evaluation"
    about = checkpoint.load(run / "best_model.keras")[1]
    table = evaluate.read_table(run / "best_model.keras", about, None)
    images = pd.read_csv(folder / "predictions.csv")
    images = images.merge(table[["filename", "path"]].drop_duplicates(), on="filename")
    results = json.loads((folder / "metrics.json").read_text())
    return Evaluation(results, images, folder, "the split's words", about["settings"], environment.read(run))


def in_browser(page, tmp_path):
    (tmp_path / "phone.html").write_text(PHONE.format(page=page.as_uri()))
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--allow-file-access-from-files",
         f"--user-data-dir={tmp_path}/profile", "--enable-logging=stderr", "--virtual-time-budget=20000", "--dump-dom",
         (tmp_path / "phone.html").as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(re.search(r"found(\{.*\})end", done.stdout)[1]), console


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine: the report is not looked at in a browser")
def test_the_report_in_a_browser_as_wide_as_a_phone(run, tmp_path):
    found, console = in_browser(run / "evaluation" / "report.html", tmp_path)
    assert console == []
    assert found["wide"] <= 390
    assert found["images"] == found["loaded"] > 10 and found["unnamed"] == 0
    assert found["scripts"] == found["foreign"] == 0


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine: the report is not looked at in a browser")
def test_the_browser_test_sees_what_is_wrong(tmp_path):
    page = tmp_path / "bad.html"
    page.write_text('<div style="width:900px">x</div><img src="none.png"><script>console.error("no")</script>')
    found, console = in_browser(page, tmp_path)
    assert found["wide"] > 390 and found["loaded"] == 0 and found["unnamed"] == 1 and found["scripts"] == 1 and console


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine: the report is not looked at in a browser")
def test_markup_in_names_does_nothing_in_a_browser(copy, tmp_path, without_figures):
    """Names of a run's folder, a split and a version that would run code, print to the console or load a file."""
    evil = "<img src=x onerror=console.error(1)><svg onload=console.error(2)>"
    environment = json.loads((copy / "environment.json").read_text())
    versions = {"versions": {evil: evil}, "resumed": [{"at": evil, "changed": {evil: [1, evil]}}, evil]}
    (copy / "environment.json").write_text(json.dumps({**environment, **versions}))
    shutil.copy(copy / "split.csv", tmp_path / f"{evil}.csv")
    copy.rename(copy.with_name(evil))
    evaluate.main([f"runs/{evil}", "--split", f"{evil}.csv"])
    (page,) = (tmp_path / "runs" / evil).glob("evaluation-*/report.html")
    assert page.read_text().count("&lt;svg onload=console.error(2)&gt;") >= 6
    found, console = in_browser(page, tmp_path)
    assert console == [] and found["scripts"] == found["foreign"] == found["images"] == 0


def test_the_report_is_one_file_with_everything_in_it(run):
    text = (run / "evaluation" / "report.html").read_text()
    for words in ("Research only", "Model card", "Split and leaks", "prefers-color-scheme: dark", "@media print",
                  "protocol: image", "optimistic", "Grad-CAM", "patients resampled"):  # fmt: skip
        assert words in text
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", text)
    headings = re.findall(r"<h([123])", text)
    assert headings[0] == "1" and headings.count("1") == 1


def test_the_text_holds_the_confusion_matrix_and_every_slide(run):
    results = json.loads((run / "evaluation" / "metrics.json").read_text())
    text = (run / "evaluation" / "report.txt").read_text()
    (tn, fp), (fn, tp) = results["confusion_matrix"]
    assert re.search(rf"predicted benign +predicted malignant\nbenign +{tn} +{fp}\nmalignant +{fn} +{tp}\n", text)
    for slide, part in results["by_slide"].items():
        assert re.search(rf"^ *slide +{slide} +{part['n']} +1 +{part['accuracy']:.4f} ", text, re.M)
    part = results["by_magnification"]["40"]
    assert f"{part['accuracy']:.4f}       {part['sensitivity']:.4f}       {part['specificity']:.4f}" in text


def test_drawn_images_are_not_called_breakhis(evaluated):
    pages = {
        notice: report.to_html(evaluated._replace(results={**evaluated.results, "notice": notice}), {})
        for notice in ("", "All of this is made up.")
    }
    for words in (
        "on BreakHis: benign",
        "evaluation on BreakHis<",
        "7,909 microscope images in 82 slide folders (81 slides)",
    ):
        assert words in pages[""] and words not in pages["All of this is made up."]
    drawn = pages["All of this is made up."]
    assert "made up" in drawn and drawn.count("ynthetic images in BreakHis&#39; layout") >= 2 and "camera" not in drawn


@pytest.mark.parametrize("rule, chosen", [("0.5", False), ("youden", True), ("sensitivity=0.95", True)])
def test_only_a_chosen_threshold_is_called_chosen(evaluated, rule, chosen):
    results = {**evaluated.results, "threshold_rule": rule, "threshold_chosen": decision.is_chosen(rule)}
    assert ("chosen on the validation set)" in report.to_html(evaluated._replace(results=results), {})) == chosen


def test_the_lead_says_what_was_trained_and_the_verdict_what_is_shared(run, evaluated):
    page = report.to_html(evaluated, {})
    assert "A compact CNN, trained from scratch, on" in page
    other = evaluated._replace(results={**evaluated.results, "base": "resnet50"})
    assert "ResNet50 with a frozen base (weights: random) and a trained sigmoid head" in report.to_html(other, {})
    shared = evaluated.results["leaks"]["shared"]
    assert page.index("test images that share with training: 0.0% their image") < page.index("</header>")
    assert f"{shared['slide']:.1%} their slide" in page and "<details>" not in page
    assert (
        page.count(
            f"50.0% of the test images are malignant, {evaluated.results['malignant_share']['valid']:.1%} of the validation"
        )
        == 2
    )


def test_the_scores_in_the_report_are_those_of_the_metrics(run):
    results = json.loads((run / "evaluation" / "metrics.json").read_text())
    page = (run / "evaluation" / "report.html").read_text()
    text = (run / "evaluation" / "report.txt").read_text()
    for key, name in metrics.SCORES.items():
        assert re.search(rf'{re.escape(name)}</th><td class="n">{results[key]:.4f}<', page)
        assert re.search(rf"^{re.escape(name)} +{results[key]:.4f} ", text, re.M)
    written = pd.read_csv(run / "evaluation" / "scores.csv").set_index("key")
    assert written.value.to_dict() == pytest.approx({key: results[key] for key in metrics.SCORES})
    assert written.patient_low["accuracy"] == pytest.approx(results["intervals"]["accuracy"]["patient"][0])


def test_every_figure_follows_from_the_predictions_by_pandas_and_scikit_learn_alone(run):
    images = pd.read_csv(run / "evaluation" / "predictions.csv")
    results = json.loads((run / "evaluation" / "metrics.json").read_text())
    true, predicted = images.label == "malignant", images.probability >= results["threshold"]
    correct = (true == predicted).groupby([images.patient, true])
    pooled = (images.probability.groupby([images.patient, true]).mean() >= results["threshold"]).reset_index()
    bins = images.assign(true=true).groupby(np.minimum(images.probability // 0.1, 9))
    expected = {
        "accuracy": sklearn.metrics.accuracy_score(true, predicted),
        "balanced_accuracy": sklearn.metrics.balanced_accuracy_score(true, predicted),
        "sensitivity": sklearn.metrics.recall_score(true, predicted),
        "specificity": sklearn.metrics.recall_score(~true, ~predicted),
        "precision": sklearn.metrics.precision_score(true, predicted, zero_division=0),
        "recall": sklearn.metrics.recall_score(true, predicted),
        "f1": sklearn.metrics.f1_score(true, predicted, average="macro"),
        "f1_malignant": sklearn.metrics.f1_score(true, predicted),
        "f1_benign": sklearn.metrics.f1_score(~true, ~predicted),
        "mcc": sklearn.metrics.matthews_corrcoef(true, predicted),
        "roc_auc": sklearn.metrics.roc_auc_score(true, images.probability),
        "average_precision": sklearn.metrics.average_precision_score(true, images.probability),
        "brier": ((images.probability - true) ** 2).mean(),
        "ece": (bins.size() * (bins.true.mean() - bins.probability.mean()).abs()).sum() / len(images),
        "recognition_rate": correct.mean().mean(),
        "patient_accuracy": (pooled.probability == pooled.label).mean(),
    }
    assert {key: results[key] for key in metrics.SCORES} == pytest.approx(expected, abs=1e-12)
    for name, column in metrics.GROUPINGS.items():
        accuracy = (true == predicted).groupby(images[name]).mean()
        assert {group: part["accuracy"] for group, part in results[f"by_{column}"].items()} == pytest.approx(
            {str(group): value for group, value in accuracy.items()}, abs=1e-12
        )
    cooled = special.expit(special.logit(images.probability) / results["calibration"]["temperature"])
    for number, probability in enumerate([images.probability, cooled]):
        assert results["calibration"]["test"]["log_loss"][number] == pytest.approx(
            sklearn.metrics.log_loss(true, probability)
        )
    assert results["calibration"]["test"]["brier"][1] == pytest.approx(sklearn.metrics.brier_score_loss(true, cooled))


def test_the_intervals_are_drawn_anew_from_the_predictions(run):
    images = pd.read_csv(run / "evaluation" / "predictions.csv")
    results = json.loads((run / "evaluation" / "metrics.json").read_text())
    again = bootstrap.intervals(
        images, results["threshold"], results["bootstrap"]["seed"], results["bootstrap"]["draws"]
    )
    assert again.keys() == results["intervals"].keys()
    for name, ends in again.items():
        assert ends == {unit: pytest.approx(pair, abs=1e-12) for unit, pair in results["intervals"][name].items()}


def test_the_headline_is_the_interval_that_covers_and_few_patients_are_warned_of(run):
    images = pd.read_csv(run / "evaluation" / "predictions.csv")
    results = json.loads((run / "evaluation" / "metrics.json").read_text())
    covering = small_sample.intervals(images)
    for name, ends in results["intervals"].items():
        assert ends["headline"] == pytest.approx(covering.get(name, ends["patient"]), abs=1e-12)
    assert covering["specificity"] != results["intervals"]["specificity"]["patient"]
    assert min(results["patients_by_class"].values()) < small_sample.FEW_PATIENTS
    for name in ("report.txt", "report.html"):
        assert "may hold the true value less often" in " ".join((run / "evaluation" / name).read_text().split())
    assert results["warning"] == small_sample.warning(results["patients_by_class"])


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.names = []

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)


def test_markup_in_the_data_stays_text(evaluated):
    """A name or a setting with markup in it is shown as text."""
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    spoiled = evaluated._replace(
        results={**evaluated.results, "run": evil, "protocol": evil, "notice": evil, "by_slide": {evil: next(iter(evaluated.results["by_slide"].values()))}},
        split_description=evil,
        environment={evil: evil, "versions": {evil: evil}},
        settings=evaluated.settings.model_copy(update={"data": evaluated.settings.data.model_copy(update={"root": evil})}),
    )  # fmt: skip
    parser = Tags()
    text = report.to_html(spoiled, {})
    parser.feed(text)
    assert "script" not in parser.names and "img" not in parser.names
    assert text.count("&lt;script&gt;") >= 8


def test_markup_in_the_name_of_a_runs_folder_stays_text(copy, without_figures):
    evil = copy.with_name("<script>alert(1)<\u2215script>$\\nothing$\x1b[31m")
    copy.rename(evil)
    evaluate.main([str(evil)])
    text = (evil / "evaluation" / "report.html").read_text()
    parser = Tags()
    parser.feed(text)
    assert "script" not in parser.names and "&lt;script&gt;alert(1)" in text
    assert "\x1b" not in text + (evil / "evaluation" / "report.txt").read_text()


@pytest.mark.parametrize("content", [b"[]", b"[" * 10**5, b"\xff", b"{", b'{"dropped": 3}', b" " * 2**23])
def test_an_environment_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "environment.json").write_bytes(content)
    with pytest.raises(InputError, match="environment.json"):
        environment.read(tmp_path)


def shown_names(drawn):
    """The names in the captions of a gallery."""
    return [text.get_text().split("\n")[0] for text in drawn.figure.axes[0].texts]


def test_every_wrong_image_is_on_a_page(evaluated, tree):
    wrong = evaluated.misclassified
    many = evaluated._replace(
        predictions=evaluated.predictions.assign(
            prediction=np.where(evaluated.predictions.label == "benign", "malignant", "benign")
        )
    )
    pages = [figure for figure in figures.galleries(many, audit.image_folder(tree)) if figure.section == "errors"]
    assert [figure.name for figure in pages] == ["misclassified-01", "misclassified-02"]
    titles = [name for figure in pages for name in shown_names(figure)]
    assert (
        sorted(titles) == sorted(name.removesuffix(".png") for name in many.misclassified.filename)
        and len(titles) == 50
    )
    assert len(wrong) < 50


def test_the_caption_is_that_of_its_image(evaluated, tree):
    """Each gallery shows under a name the pixels of that file."""
    folder = audit.image_folder(tree)
    paths = {path.stem: path for path in folder.rglob("*.png")}
    drawn = next(figure for figure in figures.galleries(evaluated, folder) if figure.name == "predictions")
    (axis,) = drawn.figure.axes
    assert len(axis.images) == len(axis.texts) == 30
    for shown, text in zip(axis.images, axis.texts):
        left, right, _, top = shown.get_extent()
        assert text.get_position() == pytest.approx(((left + right) / 2, top - data_plots.APART))
        path = paths[text.get_text().split("\n")[0]]
        np.testing.assert_array_equal(shown.get_array(), audit.read_rgb(folder, path))


def test_the_heat_maps_are_those_of_the_predicted_class(evaluated, tree, run, monkeypatch):
    classes = []
    heatmaps = figures.gradcam.heatmaps
    monkeypatch.setattr(
        figures.gradcam, "heatmaps", lambda network, images, malignant: classes.append(malignant) or heatmaps(network, images, malignant)
    )  # fmt: skip
    network, _ = checkpoint.load(run / "best_model.keras")
    drawn = list(figures.heatmaps(evaluated, audit.image_folder(tree), network))
    wrong = len(evaluated.misclassified)
    pages = -(-wrong // figures.PER_HEATMAP_PAGE)
    names = [f"heatmaps-wrong-{page:02}" for page in range(1, pages + 1)]
    assert [figure.name for figure in drawn] == [*names, "heatmaps-benign", "heatmaps-malignant"]
    assert np.concatenate(classes[:pages]).tolist() == (evaluated.misclassified.prediction == "malignant").tolist()
    assert not classes[-2].any() and classes[-1].all() and len(classes) == pages + 2
    assert "each map scaled to its own maximum" in drawn[0].figure.get_suptitle()


def test_the_title_tells_that_some_wrong_images_have_no_heat_map(evaluated, monkeypatch):
    monkeypatch.setattr(figures, "PER_HEATMAP_PAGE", 2)
    monkeypatch.setattr(figures, "MAX_WRONG_HEATMAPS", 3)
    pages = [(rows, words) for name, rows, words in figures.heatmap_pages(evaluated) if name.startswith("wrong")]
    assert pd.concat([rows for rows, _ in pages]).equals(evaluated.misclassified.head(3)) and [
        len(rows) for rows, _ in pages
    ] == [2, 1]
    assert all(
        f"of {len(evaluated.misclassified)}, the most certain first (heat maps of 3 only)" in words
        for _, words in pages
    )


def test_the_most_and_least_certain_are_so_on_either_side_of_the_threshold(evaluated, tree):
    """At 0.9 a probability of 0.99 is as certain as one of 0.09, and 0.5 more so than 0.92."""
    probability = np.linspace(0.01, 0.99, len(evaluated.predictions))
    images = evaluated.predictions.assign(probability=probability)
    moved = evaluated._replace(predictions=images, results={**evaluated.results, "threshold": 0.9})
    certain = images.filename[
        np.argsort(np.where(probability >= 0.9, (probability - 0.9) / 0.1, (0.9 - probability) / 0.9))
    ]
    half = figures.PER_GALLERY // 2
    for drawn in figures.galleries(moved, audit.image_folder(tree)):
        titles = [f"{name}.png" for name in shown_names(drawn)]
        if drawn.name in ("least_certain", "most_certain"):
            expected = certain[:half] if drawn.name == "least_certain" else certain[::-1][:half]
            assert titles == expected.tolist()
            assert set(images[images.filename.isin(titles)].probability >= 0.9) == {True, False}
