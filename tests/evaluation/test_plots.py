import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from evaluation import evaluation_plots
from images import data_plots, plot_style
from training import training_plots


def texts(axis):
    return [text.get_text() for text in axis.texts]


def test_the_confusion_matrix_is_drawn_with_benign_first():
    true = ["benign"] * 5 + ["malignant"] * 8
    predicted = ["benign"] * 4 + ["malignant"] * 1 + ["benign"] * 2 + ["malignant"] * 6
    counts, shares = evaluation_plots.confusion(true, predicted).axes[:2]
    assert texts(counts) == ["4", "1", "2", "6"]
    assert texts(shares) == ["0.8", "0.2", "0.25", "0.75"]
    for axis in (counts, shares):
        assert [label.get_text() for label in axis.get_xticklabels()] == ["benign", "malignant"]
        assert (axis.get_xlabel(), axis.get_ylabel()) == ("predicted", "true")


def test_the_distribution_shows_the_counts_in_the_colour_of_each_class():
    table = pd.DataFrame(
        {"set": ["train"] * 5 + ["test"] * 3, "label": ["benign"] * 2 + ["malignant"] * 3 + ["benign"] * 3}
    )
    table["filename"] = [f"{number}.png" for number in range(8)]
    assert data_plots.split(table.assign(filename="a.png")).axes[0].get_ylabel() == "rows"
    axis = data_plots.split(table).axes[0]
    assert (axis.get_ylabel(), axis.get_title()) == ("images", "Images by set and class")
    drawn = {
        (
            to_hex(bar.get_facecolor()).upper(),
            round(bar.get_x() + bar.get_width() / 2),
        ): bar.get_height()
        for bars in axis.containers
        for bar in bars
        if bar.get_height()
    }
    assert drawn == {("#0072B2", 0): 2, ("#D55E00", 0): 3, ("#0072B2", 1): 3}


def test_the_history_shows_the_log_and_marks_the_saved_epoch():
    epochs = pd.DataFrame({
        "epoch": [0, 1, 2], "loss": [3.0, 2, 1], "val_loss": [3.0, 1, 2], "accuracy": [0.5, 0.6, 0.7],
        "val_accuracy": [0.4, 0.5, 0.6], "learning_rate": [1e-3, 2e-3, 1e-3],
    })  # fmt: skip
    loss, accuracy, rate = training_plots.history(epochs).axes
    assert [line.get_ydata().tolist() for line in loss.lines[:2]] == [[3, 2, 1], [3, 1, 2]]
    assert accuracy.lines[1].get_ydata().tolist() == [0.4, 0.5, 0.6]
    assert rate.lines[0].get_ydata().tolist() == [1e-3, 2e-3, 1e-3]
    for axis, value in ((loss, 1.0), (accuracy, 0.5)):
        assert axis.lines[2].get_xydata().tolist() == [[2, value]]


def test_the_history_shows_the_balanced_loss_and_marks_its_epoch():
    columns = ["loss", "val_loss", "accuracy", "val_accuracy", "learning_rate"]
    epochs = pd.DataFrame({"epoch": range(3), **{column: [1.0, 2, 3] for column in columns}})
    loss, accuracy, _ = training_plots.history(epochs.assign(val_balanced_loss=[6.0, 4, 5])).axes
    assert loss.lines[2].get_ydata().tolist() == [6, 4, 5]
    assert loss.lines[3].get_xydata().tolist() == [[2, 4]] and accuracy.lines[2].get_xydata().tolist() == [[2, 2]]


def test_the_history_marks_where_the_fine_tuning_begins():
    columns = ["loss", "val_loss", "accuracy", "val_accuracy", "learning_rate"]
    epochs = pd.DataFrame({"epoch": range(4), **{column: [4.0, 3, 2, 1] for column in columns}})
    marks = [list(axis.lines[-1].get_xdata()) for axis in training_plots.history(epochs, 2).axes]
    # Between the second and the third epoch, which are numbered from 1.
    assert marks == [[2.5, 2.5]] * 3
    assert all(2.5 not in line.get_xdata() for axis in training_plots.history(epochs).axes for line in axis.lines)


def test_the_history_does_not_magnify_rounding():
    columns = ["loss", "val_loss", "accuracy", "val_accuracy", "learning_rate"]
    epochs = pd.DataFrame({"epoch": range(3), **{column: [0.7, 0.7 + 1e-9, 0.7] for column in columns}})
    spans = [np.ptp(axis.get_ylim()) for axis in training_plots.history(epochs).axes[:2]]
    assert spans == pytest.approx([training_plots.SPAN] * 2)


def test_the_gallery_puts_each_caption_and_colour_on_its_image():
    # The third is higher than the others, and keeps its shape.
    images = [np.full((8 if n == 2 else 4, 6, 3), 10 * n, np.uint8) for n in range(1, 8)]
    labels = ["benign", "malignant"] * 3 + ["malignant"]
    axis = data_plots.gallery(images, [f"image {n}" for n in range(7)], labels, "title").axes[0]
    assert [shown.get_array()[0, 0, 0] for shown in axis.images] == [10, 20, 30, 40, 50, 60, 70]
    assert [text.get_text() for text in axis.texts] == [f"image {n}" for n in range(7)]
    assert [frame.get_edgecolor()[2] > 0.5 for frame in axis.patches] == [label == "benign" for label in labels]
    taken = []
    for shown, text, frame in zip(axis.images, axis.texts, axis.patches):
        left, right, bottom, top = shown.get_extent()
        assert frame.get_bbox().extents == pytest.approx([left, top, right, bottom])
        (x, y), (high, wide) = text.get_position(), shown.get_array().shape[:2]
        assert x == pytest.approx((left + right) / 2) and 0 < top - y < 0.1
        # Each is in the middle of its cell.
        assert x % 1.8 == pytest.approx((1.8 - data_plots.APART) / 2)
        assert (bottom - top) / (right - left) == pytest.approx(high / wide)
        assert all(left >= other[1] or right <= other[0] or top >= other[2] or bottom <= other[3] for other in taken)
        taken.append((left, right, bottom, top - data_plots.ABOVE))


TRUE = np.array([False, False, True, True])
PROBABILITY = np.array([0.1, 0.6, 0.4, 0.9])


def test_the_curves_are_those_of_the_predictions_with_their_bands():
    grid = np.linspace(0, 1, 3)
    bands = {"roc": (grid, grid * 0, grid * 0 + 0.7), "pr": (grid, grid * 0 + 0.2, grid * 0 + 0.8)}
    roc, pr = evaluation_plots.curves(TRUE, PROBABILITY, bands, (0.75, 0.8)).axes
    assert roc.lines[0].get_xydata().tolist() == [[0, 0], [0, 0.5], [0.5, 0.5], [0.5, 1], [1, 1]]
    assert pr.lines[0].get_xydata().tolist() == pytest.approx(
        np.array([[1, 0.5], [1, 2 / 3], [0.5, 0.5], [0.5, 1], [0, 1]])
    )
    assert list(pr.lines[1].get_ydata()) == [0.5, 0.5] and "0.750" in roc.get_title() and "0.800" in pr.get_title()
    for axis, low, high in ((roc, 0, 0.7), (pr, 0.2, 0.8)):
        drawn = axis.collections[0].get_paths()[0].vertices[:, 1]
        assert (drawn.min(), drawn.max()) == (low, high)
        assert "pointwise 95 % over patients" in [text.get_text() for text in axis.get_legend().get_texts()]


def test_the_reliability_shows_each_bin_where_it_lies():
    before = pd.DataFrame({"probability": [0.1, 0.8], "malignant": [0.3, 0.7], "n": [5, 15]})
    figure = evaluation_plots.reliability(before, before.assign(probability=[0.2, 0.7]), [0.12, 0.08])
    for axis, x, error in zip(figure.axes, ([0.1, 0.8], [0.2, 0.7]), ("0.120", "0.080")):
        assert axis.lines[1].get_xydata().tolist() == [[x[0], 0.3], [x[1], 0.7]]
        assert axis.collections[0].get_offsets().tolist() == [[x[0], 0.3], [x[1], 0.7]] and error in axis.get_title()
        assert axis.collections[0].get_sizes().tolist() == [77.5, 202.5]


def test_the_histogram_counts_each_class_and_marks_the_threshold():
    predictions = pd.DataFrame({"label": np.where(TRUE, "malignant", "benign"), "probability": [0.1, 0.1, 0.4, 0.9]})
    axis = evaluation_plots.scores(predictions, 0.3).axes[0]
    tops = {to_hex(area.get_facecolor()[0]).upper(): area.get_paths()[0].vertices[:, 1].max()
            for area in axis.collections}  # fmt: skip
    assert tops == {"#0072B2": 2, "#D55E00": 1}
    assert axis.lines[0].get_xdata() == [0.3, 0.3] and texts(axis) == ["threshold 0.3"]


def test_the_groups_show_their_accuracy_and_every_patient():
    patients = pd.DataFrame(
        {"group": ["40", "40", "100"], "label": ["benign", "malignant", "benign"], "correct": [0.5, 1, 0.25]}
    )
    accuracy = {"40": {"accuracy": 0.75, "n": 8, "patients": 2}, "100": {"accuracy": 0.25, "n": 4, "patients": 1}}
    axis = evaluation_plots.groups(
        dict.fromkeys(["magnification", "subtype"], patients), dict.fromkeys(["magnification", "subtype"], accuracy)
    ).axes[1]
    assert [bar.get_height() for bar in axis.patches] == [0.75, 0.25]
    assert [label.get_text() for label in axis.get_xticklabels()] == [
        "40\n75% correct\n8 images\n2 patients", "100\n25% correct\n4 images\n1 patient",
    ]  # fmt: skip
    assert sorted(y for dots in axis.collections for _, y in dots.get_offsets()) == [0.25, 0.5, 1]


def test_the_patients_stand_in_order_with_their_errors():
    table = pd.DataFrame({
        "patient": ["A", "B", "C"], "label": ["benign", "malignant", "benign"], "n": [4, 5, 6], "correct": [0.75, 0.2, 1.0],
        "pooled_correct": [1.0, 0.0, 1.0],
    })  # fmt: skip
    axis = evaluation_plots.patients(table).axes[0]
    assert [bar.get_width() for bar in axis.patches] == [0.2, 0.75, 1.0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["B", "A", "C"]
    assert texts(axis) == [" 4 of 5 wrong; patient misclassified", " 1 of 4 wrong", " 0 of 6 wrong"]
    assert to_hex(axis.patches[0].get_facecolor()).upper() == "#D55E00"


def test_all_intervals_of_each_score_are_within_the_axis():
    scores = pd.DataFrame({
        "name": ["Accuracy", "Matthews"], "value": [0.7, 0.1], "patient_low": [0.5, np.nan], "patient_high": [0.9, np.nan],
        "image_low": [0.6, -0.3], "image_high": [0.8, 0.4], "headline_low": [0.4, np.nan], "headline_high": [1.0, np.nan],
    })  # fmt: skip
    axis = evaluation_plots.intervals(scores).axes[0]
    drawn = [[path.vertices[:, 0].tolist() for path in lines.get_paths()] for lines in axis.collections]
    assert drawn[0][0] == [0.4, 1.0] and drawn[1][0] == [0.5, 0.9] and drawn[2] == [[0.6, 0.8], [-0.3, 0.4]]
    assert axis.lines[0].get_xydata().tolist() == [[0.7, 0], [0.1, 1]] and axis.get_xlim()[0] < -0.3


def test_an_empty_gallery_is_an_empty_figure():
    assert not any(axis.images for axis in data_plots.gallery([], [], [], "nothing").axes)


def test_the_sheet_leaves_blank_what_is_not_there():
    grey = {("adenosis", 40): 50, ("ductal_carcinoma", 400): 100}
    images = {pair: np.full((2, 3, 3), value, np.uint8) for pair, value in grey.items()}
    axis = data_plots.sheet(images, {"adenosis": "benign", "ductal_carcinoma": "malignant"}).axes[0]
    assert [text.get_text() for text in axis.get_xticklabels()] == ["40X", "400X"]
    assert [text.get_text() for text in axis.get_yticklabels()] == ["adenosis\n(benign)", "ductal carcinoma\n(malignant)"]
    shown = axis.images[0].get_array()
    middles = [[shown[int(y), int(x), 0] for x in axis.get_xticks()] for y in axis.get_yticks()]
    assert middles == [[50, 255], [255, 100]]
    frame = data_plots.MARGIN + data_plots.FRAME // 2
    colours = [matplotlib.colors.to_hex(shown[row + frame, frame] / 255) for row in (0, data_plots.CELL[1])]
    assert colours == [colour.lower() for colour in plot_style.COLORS.values()]


def test_a_figure_is_saved_with_its_note(tmp_path):
    plt.close("all")
    figures = [evaluation_plots.confusion(["benign", "malignant"], ["benign", "malignant"]) for _ in range(2)]
    plot_style.save(figures[0], tmp_path / "plain.png")
    plot_style.save(figures[1], tmp_path / "noted.png", "research only")
    heights = [Image.open(tmp_path / f"{name}.png").height for name in ("plain", "noted")]
    assert heights[1] > heights[0] and not plt.get_fignums()


def test_the_range_test_shows_both_losses_and_the_interval():
    curve = pd.DataFrame({"rate": [1e-3, 1e-2, 1e-1], "loss": [0.9, 0.5, 0.1], "val_loss": [1.0, 0.4, 50.0]})
    axis = training_plots.rates(curve, (1e-3, 1e-2)).axes[0]
    assert [line.get_ydata().tolist() for line in axis.lines[:2]] == [[0.9, 0.5, 0.1], [1.0, 0.4, 50.0]]
    assert [line.get_xdata()[0] for line in axis.lines[2:]] == [1e-3, 1e-2]
    assert axis.get_ylim()[1] < 50 and len(training_plots.rates(curve).axes[0].lines) == 2


def test_the_trials_show_the_best_one_and_leave_out_those_that_diverged():
    tried = pd.DataFrame({
        "trial": [1, 2, 3], "status": ["completed", "failed", "completed"], "val_loss": [0.9, np.nan, 0.4],
        "val_auc": [0.8, np.nan, 0.6], "epoch": [1, np.nan, 2], "maximal_lr": [0.1, 1.0, 0.01],
        "standardize": [True, False, False],
    })  # fmt: skip
    for objective, best, loss in (("val_loss", 3, 0.4), ("val_auc", 1, 0.8)):
        trial, rate, standardize = training_plots.trials(tried, objective, None).axes[:3]
        assert trial.lines[0].get_xdata().tolist() == [1, 3]
        assert trial.lines[-1].get_xydata().tolist() == [[best, loss]]
        assert rate.get_xscale() == "log"
        assert [label.get_text() for label in standardize.get_xticklabels()] == ["false", "true"]
