"""report: what the page says is what the folder holds; what is missing is named; nothing is asked of the network."""

import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as Xml

import pytest

from tsconvert import embedded
from tsconvert.common.errors import TsconvertError
from tsconvert.common.files import write_json
from tsconvert.convert.config import RelufyConfig
from tsconvert.convert.relufy import relufy
from tsconvert.evaluate.config import MeasureConfig
from tsconvert.evaluate.measure import measure
from tsconvert.evaluate.perplexity.config import EvalConfig
from tsconvert.evaluate.report.page import ReportConfig, WrittenReport, report
from tsconvert.evaluate.tasks.config import TaskConfig
from tsconvert.predictors.profile.config import ProfileConfig
from tsconvert.predictors.profile.profile import profile
from tsconvert.text.sources import Source


@pytest.fixture
def folder(whole_chain: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole_chain, tmp_path / "outputs"))


def written(folder: Path) -> tuple[WrittenReport, str]:
    found = report(ReportConfig(folder=folder, out=folder.parent / "new" / "report.html"))
    return found, found.out.read_text(encoding="utf-8")


class Reader(HTMLParser):
    """The page's text, and a check that every element is closed where it should be."""

    VOID = ("meta", "link", "br")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def drawings(page: str) -> dict[str, Xml.Element]:
    """The plots by what a screen reader says of them."""
    found = (Xml.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.S))
    return {str(svg.get("aria-label")): svg for svg in found}


def test_every_section_is_there_and_says_what_the_records_say(folder: Path):
    found, page = written(folder)
    assert found.sections == [
        "What it costs", "Which neurons fire", "How well firing is foreseen", "How fast it runs",
        "How it was recovered", "The files", "What storing the weights cost", "How it was made",
    ]  # fmt: skip
    assert (found.missing, found.unreadable) == ([], [])
    text = Reader(page).text
    scores = {name: json.loads((folder / f"eval-{name}.json").read_text()) for name in ("dense", "sparse", "predicted")}
    ratio = scores["sparse"]["perplexity"] / scores["dense"]["perplexity"]
    assert f"{ratio:.2f} × perplexity" in text
    for score in scores.values():
        assert f"{score['perplexity']:,.0f}" in text
    assert f"{scores['predicted']['kl_mean']:.4f}" in text
    ffns = json.loads((folder / "predictors" / "config.json").read_text())["report"]["ffns"]
    energy = sum(ffn["energy"] for ffn in ffns) / len(ffns)
    assert f"{100 * energy:.0f} % of the energy foreseen" in text
    rows = {row["mode"]: row["tokens_per_s"] for row in json.loads((folder / "bench.json").read_text())["rows"]}
    assert all(f"{speed:,.1f}" in text for speed in rows.values())
    assert f"{max(rows['exact'], rows['predicted']) / rows['dense']:.2f} × as fast as dense mode" in text
    assert "tsconvert bench <sparse.gguf>" in text


def test_the_plots_are_drawn_to_scale(folder: Path):
    _, page = written(folder)
    plots = drawings(page)
    assert len(plots) == 12
    layers = json.loads((folder / "sparse" / "tsconvert.json").read_text())["report"]["layers"]
    bars = [float(rect.get("height", 0)) for rect in plots["error of each layer"].iter("rect")]
    errors = [layer["error_after"] for layer in layers]
    assert bars[0] / bars[1] == pytest.approx(errors[0] / errors[1], rel=0.02)
    counts = [int(re.sub(r".*: ([\d,]+) neurons", r"\1", title.text or "").replace(",", ""))
              for title in plots["histogram of firing rates"].iter("title")]  # fmt: skip
    assert sum(counts) == 2 * 128
    loss = list(plots["training loss of each layer"].iter("path"))
    assert [len(re.findall("[ML]", str(path.get("d")))) for path in loss] == [12, 12]
    dots = list(plots["quantization error of each tensor"].iter("circle"))
    errors = [
        error
        for name in ("sparse", "small")
        for error in json.loads((folder / f"{name}.gguf.json").read_text())["verification"]["errors"].values()
    ]
    assert len(dots) == sum(error > 1e-6 for error in errors) >= 30


def test_the_error_of_a_tensor_is_its_distance_from_the_source(folder: Path):
    import numpy as np

    from tsconvert.model.checkpoint import Checkpoint
    from tsconvert.model.files.gguf.file import GgufFile
    from tsconvert.model.tensor_names import Place

    recorded = json.loads((folder / "small.gguf.json").read_text())["verification"]["errors"]["token_embd.weight"]
    source = Checkpoint(folder / "sparse").array(Place("token_embd"))
    stored = GgufFile(folder / "small.gguf").tensors["token_embd.weight"].to_float32()
    assert recorded == pytest.approx(np.linalg.norm(stored - source) / np.linalg.norm(source), rel=1e-3)


def test_nothing_is_asked_of_the_network_and_nothing_is_run(folder: Path):
    _, page = written(folder)
    assert "<script" not in page
    assert not re.search(r"https?:|//[a-z]|@import|url\(|\bsrc=|\bon\w+=", page)
    links = re.findall(r'href="([^"]*)"', page)
    assert links[0] == "data:,"
    assert all(f'id="{link[1:]}"' in page for link in links[1:])


def test_what_is_missing_is_left_out_and_named(folder: Path):
    for name in ("bench.json", "profile.safetensors", "eval-dense.json", "eval-sparse.json", "eval-predicted.json"):
        (folder / name).unlink()
    shutil.rmtree(folder / "predictors")
    found, page = written(folder)
    assert found.missing == [
        "perplexity and KL divergence", "how often each neuron fires", "recall and predicted density",
        "speed of each mode",
    ]  # fmt: skip
    assert "How fast it runs" not in page
    assert "How well firing is foreseen" not in page
    text = Reader(page).text
    assert f"tsconvert profile {folder / 'sparse'} --out {folder}/profile.safetensors" in text
    assert "KL mean" not in text
    report_ = json.loads((folder / "sparse" / "tsconvert.json").read_text())["report"]
    assert f"{report_['perplexity'] / report_['dense_perplexity']:.2f} × perplexity" in text


def test_only_a_gguf_file_makes_a_short_page(folder: Path, tmp_path: Path):
    (tmp_path / "one").mkdir()
    shutil.copy(folder / "small.gguf", tmp_path / "one")
    found, page = written(tmp_path / "one")
    assert found.sections == ["The files", "How it was made"]
    assert "not recorded" in Reader(page).text


def test_a_damaged_file_is_named_and_the_rest_is_shown(folder: Path):
    whole = (folder / "sparse.gguf").read_bytes()
    (folder / "sparse.gguf").write_bytes(whole[:-1000])
    (folder / "eval-sparse.json").write_text("{")
    found, page = written(folder)
    assert [problem.split(": ")[0] for problem in found.unreadable] == [
        str(folder / "sparse.gguf"), str(folder / "eval-sparse.json")
    ]  # fmt: skip
    assert "The files" in found.sections
    assert "cut off, tensor " in Reader(page).text


def test_text_that_looks_like_html_stays_text(folder: Path):
    write_json(
        folder / "run.json",
        {"text": "<script>alert(1)</script>", "tokens": [1], "mode": "x", "command": "tsconvert run f -p '<b> it'"},
    )
    _, page = written(folder)
    assert "<script" not in page
    assert "x <b> it <script>alert(1)</script>" in Reader(page).text


def test_experts_have_a_plot_of_their_own(moe: Path, tmp_path: Path):
    sparse = tmp_path / "out" / "sparse"
    relufy(RelufyConfig(model=str(moe), out=sparse, tokens=1024, context=128, recover="none"))
    profile(ProfileConfig(model=str(sparse), out=tmp_path / "out" / "p.safetensors", tokens=1024, context=128))
    _, page = written(tmp_path / "out")
    plots = drawings(page)
    assert len(list(plots["density of each expert"].iter("rect"))) == 2 * 4
    shares = [
        float(re.sub(r".*: ([\d.]+) %", r"\1", str(title.text)))
        for title in plots["tokens of each expert"].iter("title")
    ]
    assert sum(shares) == pytest.approx(200, abs=2)


def test_lines_of_a_check_are_shown(folder: Path):
    lines = [
        {
            "what": "quality.kl_mean",
            "status": "failed",
            "allowed": "at most 0.1",
            "problem": "is 0.2, must be",
            "found": 1,
        },
        {"what": "stage relufy", "status": "passed", "allowed": "exit code 0", "problem": "", "found": ""},
    ]
    write_json(folder / "check.json", {"name": "nightly", "lines": lines, "stages": []})
    found, page = written(folder)
    assert "Thresholds" in found.sections
    assert '<td class="failed">FAILED</td>' in page
    assert "quality.kl_mean FAILED at most 0.1 is 0.2, must be" in Reader(page).text


def test_a_model_that_was_trained_on_shows_the_whole_way(folder: Path, dense: Path):
    better = Path(shutil.copytree(folder / "sparse", folder / "better"))
    record = json.loads((better / "tsconvert.json").read_text())
    record["settings"] |= {"model": str(folder / "sparse"), "recover": "full", "teacher": str(dense)}
    looks = [{"step": step, "perplexity": 90.0 - step, "density": 0.2, "predicted_perplexity": None} for step in (4, 8)]
    record["report"] |= {
        "layers": [], "energy_kept": None, "perplexity": 82.0, "dense_perplexity": 41.0,
        "full": {
            "steps": 8, "tokens": 4096, "best_step": 8, "dense_perplexity": 41.0, "perplexity": 82.0,
            "density": [0.25, 0.15], "evaluations": looks, "losses": [[2, 5.0], [4, 4.0], [6, 4.5]],
        },
    }  # fmt: skip
    write_json(better / "tsconvert.json", record)
    for file in (*folder.glob("eval*.json"), folder / "profile.safetensors"):
        file.unlink()
    shutil.rmtree(folder / "predictors")
    _, page = written(folder)
    text = Reader(page).text
    assert text.index(f"{dense.name} dense Mistral, SwiGLU") < text.index("sparse dReLU checkpoint 2,048 tokens")
    assert "better dReLU checkpoint 4,096 tokens" in text
    assert "2.00 × perplexity 82.0, dense 41.0 20 % of the neurons fire" in text
    plots = drawings(page)
    assert {"training loss of each layer", "loss over steps", "perplexity over steps", "density over steps"} <= set(
        plots
    )
    (line,) = (path for path in plots["loss over steps"].iter("path"))
    ys = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", str(line.get("d")))]
    assert (ys[1] - ys[2]) / (ys[1] - ys[0]) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda where: None, "{where}: no such folder; give one that holds outputs of tsconvert"),
        (
            lambda where: where.mkdir(),
            "{where}: holds no output of tsconvert; give the folder that the stages wrote into",
        ),
    ],
)
def test_a_folder_that_holds_nothing(tmp_path: Path, make: Callable[[Path], None], sentence: str):
    make(tmp_path / "x")
    with pytest.raises(TsconvertError) as error:
        report(ReportConfig(folder=tmp_path / "x", out=tmp_path / "report.html"))
    assert str(error.value) == sentence.format(where=tmp_path / "x")


def test_a_page_that_would_be_a_folder(folder: Path):
    with pytest.raises(TsconvertError, match=r"is a folder; give --out the page's name, such as .*/report\.html$"):
        report(ReportConfig(folder=folder, out=folder))


def test_a_record_of_another_shape_is_named(tmp_path: Path):
    (tmp_path / "a.json").write_text('{"asked": 1, "stages": 2}')
    with pytest.raises(TsconvertError) as caught:
        report(ReportConfig(folder=tmp_path, out=tmp_path / "report.html"))
    assert str(caught.value).startswith(f"{tmp_path / 'a.json'}: is not what tsconvert writes (")
    assert not (tmp_path / "report.html").exists()


def test_texts_and_tasks_stand_beside_the_dense_model(folder: Path, dense: Path):
    for name, start in (("one", 0), ("two", 3000)):
        (folder / f"{name}.txt").write_text(embedded.text("heldout.txt").read_text(encoding="utf-8")[start:][:3000])
    sources = tuple(Source(path=str(folder / f"{name}.txt")) for name in ("one", "two"))
    sparse = str(folder / "sparse")
    text = EvalConfig(model=sparse, data=sources, tokens=512, context=64)
    tasks = TaskConfig(model=sparse, tasks=("agreement",), limit=4)
    measured = measure(MeasureConfig(text=text, tasks=tasks, baselines=(f"dense={dense}",)))
    write_json(folder / "eval-measured.json", measured.to_json())
    alone = measure(MeasureConfig(tasks=tasks))
    write_json(folder / "eval-tasks.json", alone.to_json())
    _, page = written(folder)
    said = Reader(page).text
    (against,) = measured.baselines
    assert f"{against.worst_ratio:.2f} × perplexity on the worst text {against.worst_ratio_on}" in said
    assert f"{100 * against.mean_difference:+.1f} points right answers in tasks" in said
    for found in measured.measures[:2]:
        beside = found.baselines[0]
        row = f"{found.name} perplexity {found.count} {found.value:,.2f} ± {found.error:,.2f}"
        assert f"{row} {beside.value:,.2f} ± {beside.error:,.2f} {beside.ratio:.3f} ± {beside.ratio_error:.3f}" in said
    assert said.count("agreement acc_bytes 4") == 2
