import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

from config import InputError

import numpy as np
import pandas as pd
import pytest
from scipy import special
from sklearn import metrics

import audit
import checkpoint
import evaluate
import figures
import intervals
import measures
import report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# Asks the page, in a frame as wide as a phone, what a reader's eye would ask.
PHONE = """<body style="margin:0"><iframe id="page" src="{page}" width="390" height="800"></iframe><script>
onload = () => {{
  const page = document.getElementById("page").contentDocument, pictures = [...page.images];
  const found = {{wide: page.documentElement.scrollWidth, pictures: pictures.length,
    loaded: pictures.filter(one => one.complete && one.naturalWidth > 0).length,
    unnamed: pictures.filter(one => !one.alt).length, scripts: page.scripts.length,
    foreign: [...page.querySelectorAll("[src],link")].filter(one => !(one.src || "").startsWith("data:")).length}};
  document.body.replaceChildren("found" + JSON.stringify(found) + "end");
}};</script></body>"""


@pytest.fixture(scope="module")
def evaluated(run):
    """The evaluation of the tiny run, from its files."""
    folder = run / "evaluation"
    about = checkpoint.load(run / "best_model.keras")[1]
    table = evaluate.images_of(run / "best_model.keras", about, None)
    images = pd.read_csv(folder / "predictions.csv")
    images = images.merge(table[["filename", "path"]].drop_duplicates(), on="filename")
    results = json.loads((folder / "metrics.json").read_text())
    environment = evaluate.surroundings(run / "best_model.keras")
    return report.Evaluation(results, images, folder, "the split's words", about["settings"], environment)


def in_browser(page, tmp_path):
    (tmp_path / "phone.html").write_text(PHONE.format(page=page.as_uri()))
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
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
    assert found["pictures"] == found["loaded"] > 10 and found["unnamed"] == 0
    assert found["scripts"] == found["foreign"] == 0


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine: the report is not looked at in a browser")
def test_the_browser_test_sees_what_is_wrong(tmp_path):
    page = tmp_path / "bad.html"
    page.write_text('<div style="width:900px">x</div><img src="none.png"><script>console.error("no")</script>')
    found, console = in_browser(page, tmp_path)
    assert found["wide"] > 390 and found["loaded"] == 0 and found["unnamed"] == 1 and found["scripts"] == 1 and console


def test_the_report_is_one_file_with_everything_in_it(run):
    text = (run / "evaluation" / "report.html").read_text()
    for words in ("Research only", "Model card", "Split and leaks", "prefers-color-scheme: dark", "@media print",
                  "protocol: image", "no measure of new slides", "Grad-CAM", "patients resampled"):  # fmt: skip
        assert words in text
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", text)
    headings = re.findall(r"<h([123])", text)
    assert headings[0] == "1" and headings.count("1") == 1


def test_the_scores_in_the_report_are_those_of_the_metrics(run):
    found = json.loads((run / "evaluation" / "metrics.json").read_text())
    page = (run / "evaluation" / "report.html").read_text()
    text = (run / "evaluation" / "report.txt").read_text()
    for key, name in measures.SCORES.items():
        assert re.search(rf'{re.escape(name)}</th><td class="n">{found[key]:.4f}<', page)
        assert re.search(rf"^{re.escape(name)} +{found[key]:.4f} ", text, re.M)
    written = pd.read_csv(run / "evaluation" / "scores.csv").set_index("key")
    assert written.value.to_dict() == pytest.approx({key: found[key] for key in measures.SCORES})
    assert written.patient_low["accuracy"] == pytest.approx(found["intervals"]["accuracy"]["patient"][0])


def test_every_figure_follows_from_the_predictions_by_pandas_and_scikit_learn_alone(run):
    images = pd.read_csv(run / "evaluation" / "predictions.csv")
    found = json.loads((run / "evaluation" / "metrics.json").read_text())
    true, said = images.label == "malignant", images.probability >= found["threshold"]
    right = (true == said).groupby([images.patient, true])
    pooled = (images.probability.groupby([images.patient, true]).mean() >= found["threshold"]).reset_index()
    bins = images.assign(true=true).groupby(np.minimum(images.probability // 0.1, 9))
    expected = {
        "accuracy": metrics.accuracy_score(true, said),
        "balanced_accuracy": metrics.balanced_accuracy_score(true, said),
        "sensitivity": metrics.recall_score(true, said),
        "specificity": metrics.recall_score(~true, ~said),
        "precision": metrics.precision_score(true, said, zero_division=0),
        "recall": metrics.recall_score(true, said),
        "f1": metrics.f1_score(true, said, average="macro"),
        "f1_malignant": metrics.f1_score(true, said),
        "f1_benign": metrics.f1_score(~true, ~said),
        "mcc": metrics.matthews_corrcoef(true, said),
        "roc_auc": metrics.roc_auc_score(true, images.probability),
        "average_precision": metrics.average_precision_score(true, images.probability),
        "brier": ((images.probability - true) ** 2).mean(),
        "ece": (bins.size() * (bins.true.mean() - bins.probability.mean()).abs()).sum() / len(images),
        "recognition_rate": right.mean().mean(),
        "patient_accuracy": (pooled.probability == pooled.label).mean(),
    }
    assert {key: found[key] for key in measures.SCORES} == pytest.approx(expected, abs=1e-12)
    for name, column in measures.GROUPINGS.items():
        accuracy = (true == said).groupby(images[name]).mean()
        assert {group: part["accuracy"] for group, part in found[f"by_{column}"].items()} == pytest.approx(
            {str(group): value for group, value in accuracy.items()}, abs=1e-12
        )
    cooled = special.expit(special.logit(images.probability) / found["calibration"]["temperature"])
    for number, probability in enumerate([images.probability, cooled]):
        assert found["calibration"]["test"]["log_loss"][number] == pytest.approx(metrics.log_loss(true, probability))
    assert found["calibration"]["test"]["brier"][1] == pytest.approx(metrics.brier_score_loss(true, cooled))


def test_the_intervals_are_drawn_anew_from_the_predictions(run):
    images = pd.read_csv(run / "evaluation" / "predictions.csv")
    found = json.loads((run / "evaluation" / "metrics.json").read_text())
    again = intervals.intervals(images, found["threshold"], found["bootstrap"]["seed"], found["bootstrap"]["draws"])
    assert again.keys() == found["intervals"].keys()
    for name, ends in again.items():
        assert ends == {unit: pytest.approx(pair, abs=1e-12) for unit, pair in found["intervals"][name].items()}


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.names = []

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)


def test_markup_in_the_data_stays_text(evaluated):
    """A name or a setting with markup in it is shown, not obeyed."""
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    spoiled = evaluated._replace(
        results={**evaluated.results, "run": evil, "protocol": evil, "notice": evil, "by_slide": {evil: next(iter(evaluated.results["by_slide"].values()))}},
        leaks=evil,
        environment={evil: evil, "versions": {evil: evil}},
        settings=evaluated.settings.model_copy(update={"data": evaluated.settings.data.model_copy(update={"root": evil})}),
    )  # fmt: skip
    parser = Tags()
    text = report.page(spoiled, {})
    parser.feed(text)
    assert "script" not in parser.names and "img" not in parser.names
    assert text.count("&lt;script&gt;") >= 8


def test_markup_in_the_name_of_a_runs_folder_stays_text(copy):
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
        evaluate.surroundings(tmp_path / "best_model.keras")


def test_every_wrong_image_is_on_a_page(evaluated, tree):
    wrong = evaluated.wrong
    many = evaluated._replace(
        predictions=evaluated.predictions.assign(
            prediction=np.where(evaluated.predictions.label == "benign", "malignant", "benign")
        )
    )
    pages = [one for one in figures.galleries(many, audit.find_pictures(tree)) if one.section == "errors"]
    assert [one.name for one in pages] == ["misclassified-01", "misclassified-02"]
    titles = [axis.get_title().split("\n")[0] for one in pages for axis in one.figure.axes if axis.get_title()]
    assert sorted(titles) == sorted(name.removesuffix(".png") for name in many.wrong.filename) and len(titles) == 50
    assert len(wrong) < 50


def test_the_caption_is_that_of_its_picture(evaluated, tree):
    """Each gallery shows under a name the pixels of that file."""
    folder = audit.find_pictures(tree)
    paths = {path.stem: path for path in folder.rglob("*.png")}
    drawn = next(one for one in figures.galleries(evaluated, folder) if one.name == "predictions")
    shown = [axis for axis in drawn.figure.axes if axis.get_title()]
    assert len(shown) == 30
    for axis in shown:
        np.testing.assert_array_equal(
            axis.images[0].get_array(), audit.read_rgb(paths[axis.get_title().split("\n")[0]])
        )


def test_the_heat_maps_are_those_of_the_predicted_class(evaluated, tree, run, monkeypatch):
    asked = []
    heatmaps = figures.gradcam.heatmaps
    monkeypatch.setattr(
        figures.gradcam, "heatmaps", lambda network, images, malignant: asked.append(malignant) or heatmaps(network, images, malignant)
    )  # fmt: skip
    network, _ = checkpoint.load(run / "best_model.keras")
    drawn = list(figures.heatmaps(evaluated, audit.find_pictures(tree), network))
    assert [one.name for one in drawn] == ["heatmaps-wrong", "heatmaps-benign", "heatmaps-malignant"]
    expected = (evaluated.wrong.head(figures.EXPLAINED).prediction == "malignant").tolist()
    assert asked[0].tolist() == expected and not asked[1].any() and asked[2].all()
