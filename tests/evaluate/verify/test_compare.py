"""verify: planted faults, each found with the name of what is wrong, and right files let through."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tsconvert import cli
from tsconvert.common.errors import CheckFailedError
from tsconvert.evaluate.verify.compare import VerifyConfig, VerifyReport, verify
from tsconvert.model.checkpoint import open_checkpoint
from tsconvert.model.files.gguf import ggml
from tsconvert.model.files.gguf.file import GgufFile
from tsconvert.predictors.folder import PredictorSet, save_predictors
from tsconvert.predictors.predictor import Predictor
from tsconvert.predictors.profile.config import ProfileConfig
from tsconvert.predictors.profile.profile import profile
from tsconvert.quant.export import ExportConfig, export_unverified
from tsconvert.quant.targets import plan
from tsconvert.quant.types.encoding import quantize

Make = Callable[..., Path]
TARGETS = ("llama.cpp", "sparse", "powerinfer")


@pytest.fixture(scope="module")
def model(make_checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A dense and a dReLU model whose FFNs are square: 64 wide, 64 neurons, so that no shape gives a fault away."""
    dense = make_checkpoint("mistral", intermediate_size=64, hidden_size=64, seed=5)
    folder = tmp_path_factory.mktemp("square")
    sparse = Path(shutil.copytree(dense, folder / "sparse"))
    config = json.loads((sparse / "config.json").read_text())
    (sparse / "config.json").write_text(
        json.dumps(config | {"model_type": "turbosparse_mistral", "hidden_act": "relu"})
    )
    rng = np.random.default_rng(3)
    ffns: list[list[Predictor | None]] = [
        [Predictor(fc1_RD=normal(rng, 8, 64), fc2_FR=normal(rng, 64, 8))] for _ in range(2)
    ]
    save_predictors(
        PredictorSet(model_fingerprint=open_checkpoint(sparse).fingerprint, ffns=ffns, report={}), folder / "predictors"
    )
    profile(ProfileConfig(model=str(sparse), out=folder / "profile.safetensors", tokens=256, context=64))
    return {"llama.cpp": dense, "sparse": sparse, "powerinfer": sparse, "folder": folder}


def normal(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    return rng.normal(size=(rows, columns)).astype(np.float32)


def exported(model: dict[str, Path], target: str, tmp_path: Path, type_name: str = "F16") -> Path:
    beside = {} if target == "llama.cpp" else {
        "predictors": model["folder"] / "predictors", "profile": model["folder"] / "profile.safetensors"
    }  # fmt: skip
    out = tmp_path / "model.gguf"
    export_unverified(ExportConfig(model=model[target], out=out, target=target, type_name=type_name, **beside))
    return out


def checked(model: dict[str, Path], target: str, out: Path, **options) -> VerifyReport:
    predictors = None if target == "llama.cpp" else model["folder"] / "predictors"
    return verify(VerifyConfig(model=model[target], file=out, predictors=predictors, **options))


def failures(report: VerifyReport) -> dict[str, str]:
    with pytest.raises(CheckFailedError) as caught:
        report.require()
    assert caught.value.exit_code == 1
    assert Path(report.file).is_file()
    found = {failure.what: failure.problem for failure in report.failures}
    assert str(caught.value).startswith(f"{report.file} is not what {report.model} makes it: {next(iter(found))}: ")
    return found


def tamper(path: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Replace a tensor's decoded values [rows, columns] by what ``change`` makes of them."""
    tensor = GgufFile(path).tensors[name]
    values = tensor.to_float32().reshape(-1, tensor.shape[-1])
    raw = quantize(np.ascontiguousarray(change(values)), tensor.type_name)
    with path.open("r+b") as stream:
        stream.seek(tensor.offset)
        stream.write(raw.tobytes())


def rows_of(path: Path, name: str) -> np.ndarray:
    tensor = GgufFile(path).tensors[name]
    return tensor.to_float32().reshape(-1, tensor.shape[-1])


@pytest.mark.parametrize("type_name", ["F16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("target", TARGETS)
def test_a_right_file_passes(model: dict[str, Path], target: str, type_name: str, tmp_path: Path):
    report = checked(model, target, exported(model, target, tmp_path, type_name))
    report.require()
    assert report.dialect == target
    assert report.types["F32"][1] == 0
    assert report.logits.tokens == 72
    assert report.logits.difference < (1e-4 if type_name == "F16" else 0.1)
    assert report.keys > 12
    assert report.texts > 40


@pytest.mark.parametrize("type_name", [name for name in ggml.weight_types() if not name.startswith(("IQ", "MX"))])
def test_every_type_is_within_its_bound(type_name: str, make_checkpoint: Make, tmp_path: Path):
    folder = make_checkpoint("mistral", hidden_size=256, intermediate_size=256, num_hidden_layers=1, vocab_size=4096)
    export_unverified(ExportConfig(model=folder, out=tmp_path / "m.gguf", type_name=type_name, pure=True))
    report = verify(VerifyConfig(model=folder, file=tmp_path / "m.gguf"))
    report.require()
    assert report.logits.difference < (1e-3 if type_name in ("F32", "F16", "BF16") else 0.1)
    count, worst = report.types[type_name]
    assert count == 9 if type_name != "F32" else 12
    assert worst == 0 if type_name in ("F32", "F16", "BF16") else 0.5 < worst <= 1


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("type_name", ["F16", "Q4_0"])
class TestPlanted:
    """The faults that users have had, each planted in a file."""

    def test_a_wrongly_permuted_q(self, model: dict, target: str, type_name: str, tmp_path: Path):
        out = exported(model, target, tmp_path, type_name)
        tamper(out, "blk.1.attn_q.weight", lambda rows: rows.reshape(4, -1, 2, 64).swapaxes(1, 2).reshape(rows.shape))
        problem = failures(checked(model, target, out))
        assert list(problem) == ["blk.1.attn_q.weight"]
        assert problem["blk.1.attn_q.weight"].endswith(
            "; the tensor holds the rows in Hugging Face's order, not ggml's"
        )

    def test_a_transposed_down(self, model: dict, target: str, type_name: str, tmp_path: Path):
        out = exported(model, target, tmp_path, type_name)
        name = f"blk.0.ffn_down{'' if target == 'llama.cpp' else '_t'}.weight"
        tamper(out, name, lambda rows: rows.T)
        assert list(failures(checked(model, target, out))) == [name]

    def test_swapped_gate_and_up(self, model: dict, target: str, type_name: str, tmp_path: Path):
        out = exported(model, target, tmp_path, type_name)
        gate, up = "blk.1.ffn_gate.weight", "blk.1.ffn_up.weight"
        rows = {name: rows_of(out, name) for name in (gate, up)}
        tamper(out, gate, lambda _: rows[up])
        tamper(out, up, lambda _: rows[gate])
        problem = failures(checked(model, target, out))
        assert list(problem) == [gate, up]
        assert problem[gate].endswith("; the tensor holds ffn_up")
        assert problem[up].endswith("; the tensor holds ffn_gate")

    def test_shifted_token_ids(self, model: dict, target: str, type_name: str, tmp_path: Path):
        out = exported(model, target, tmp_path, type_name)
        tamper(out, "token_embd.weight", lambda rows: np.roll(rows, 1, axis=0))
        problem = failures(checked(model, target, out))
        assert list(problem) == ["token_embd.weight"]
        assert problem["token_embd.weight"].endswith("; the tensor holds the source's rows shifted by 1")

    def test_a_truncated_tensor(self, model: dict, target: str, type_name: str, tmp_path: Path):
        out = exported(model, target, tmp_path, type_name)
        last = next(reversed(GgufFile(out).tensors.values()))
        out.write_bytes(out.read_bytes()[: last.offset + last.size_bytes - 100])
        assert failures(checked(model, target, out)) == {
            "file": f"{out}: cut off, tensor {last.name} lacks 100 bytes at the end; download or write the file again"
        }

    def test_a_tensor_whose_end_was_never_written(self, model: dict, target: str, type_name: str, tmp_path: Path):
        out = exported(model, target, tmp_path, type_name)
        tamper(out, "blk.0.attn_v.weight", lambda rows: np.where(np.arange(len(rows))[:, None] < 30, rows, 0))
        problem = failures(checked(model, target, out))
        assert list(problem) == ["blk.0.attn_v.weight"]
        assert problem["blk.0.attn_v.weight"].startswith("2 of 32 rows differ, row 30 ")

    @pytest.mark.parametrize("kind", ["attn_output", "ffn_up", "ffn_down"])
    def test_a_flipped_sign_in_one_row(self, model: dict, target: str, type_name: str, kind: str, tmp_path: Path):
        out = exported(model, target, tmp_path, type_name)
        name = f"blk.1.{kind}{'_t' if kind == 'ffn_down' and target != 'llama.cpp' else ''}.weight"
        tamper(out, name, lambda rows: np.where(np.arange(len(rows))[:, None] == 17, -rows, rows))
        problem = failures(checked(model, target, out))
        assert list(problem) == [name]
        assert problem[name].startswith("1 of 64 rows differ, row 17 ")
        assert problem[name].endswith("; row 17 has the other sign")


@pytest.mark.parametrize("target", ["sparse", "powerinfer"])
@pytest.mark.parametrize("part", ["fc1", "fc2"])
def test_a_predictor_of_another_layer(model: dict, target: str, part: str, tmp_path: Path):
    out = exported(model, target, tmp_path)
    other = rows_of(out, f"blk.1.{part}.weight")
    tamper(out, f"blk.0.{part}.weight", lambda _: other)
    assert list(failures(checked(model, target, out))) == [f"blk.0.{part}.weight"]


def test_neurons_out_of_order(model: dict, tmp_path: Path):
    out = exported(model, "sparse", tmp_path)
    order = GgufFile(out).tensors["blk.0.ffn_order"].raw.view("<i4")
    tamper(out, "blk.0.ffn_gate.weight", lambda rows: rows[np.argsort(order)])
    problem = failures(checked(model, "sparse", out))
    assert list(problem) == ["blk.0.ffn_gate.weight"]
    assert problem["blk.0.ffn_gate.weight"].endswith(
        "; the tensor holds the neurons in the source's order, not the file's"
    )


def test_shards_are_one_file(model: dict, tmp_path: Path):
    config = ExportConfig(model=model["llama.cpp"], out=tmp_path / "m.gguf", split_max_bytes=300_000)
    first = export_unverified(config).out
    assert first.name.startswith("m-00001-of-")
    report = verify(VerifyConfig(model=model["llama.cpp"], file=first))
    report.require()
    assert report.logits.tokens == 72


def edit_bytes(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert content.count(old) == 1
    assert len(old) == len(new)
    path.write_bytes(content.replace(old, new))


def test_swapped_tokens(model: dict, tmp_path: Path):
    out = exported(model, "llama.cpp", tmp_path)
    first, second = (GgufFile(out).metadata["tokenizer.ggml.tokens"][i].encode() for i in (300, 301))
    entry = b"".join(struct.pack("<Q", len(token)) + token for token in (first, second))
    swapped = b"".join(struct.pack("<Q", len(token)) + token for token in (second, first))
    edit_bytes(out, entry, swapped)
    found = failures(checked(model, "llama.cpp", out))
    assert next(iter(found)) == "tokenizer.ggml.tokens"
    assert found["tokenizer.ggml.tokens"] == (
        f"token 300 is {second.decode()!r} where transformers has {first.decode()!r}"
    )


def test_another_rope_base(model: dict, tmp_path: Path):
    out = exported(model, "llama.cpp", tmp_path)
    key = b"llama.rope.freq_base" + struct.pack("<I", 6)
    edit_bytes(out, key + struct.pack("<f", 1e4), key + struct.pack("<f", 2e4))
    assert failures(checked(model, "llama.cpp", out)) == {
        "llama.rope.freq_base": "is 20000.0 where the model makes it 10000.0"
    }


def test_what_the_keys_mean_is_seen_in_the_logits(model: dict, tmp_path: Path):
    """A key that the check of keys is told to leave alone."""
    out = exported(model, "llama.cpp", tmp_path)
    key = b"llama.rope.freq_base" + struct.pack("<I", 6)
    edit_bytes(out, key + struct.pack("<f", 1e4), key + struct.pack("<f", 5e1))
    found = failures(checked(model, "llama.cpp", out, overridden=frozenset({"llama.rope.freq_base"})))
    assert list(found) == ["logits"]
    assert found["logits"].startswith("the runner's logits differ from transformers' by ")


def test_another_model(model: dict, tmp_path: Path):
    out = exported(model, "llama.cpp", tmp_path)
    other = Path(shutil.copytree(model["llama.cpp"], tmp_path / "other"))
    tensors = load_file(other / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] + 1
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    found = failures(verify(VerifyConfig(model=other, file=out)))
    assert found == {"output_norm.weight": "1 of 1 rows differ, row 0 is not its source"}


def test_experts(moe: Path, tmp_path: Path):
    out = tmp_path / "m.gguf"
    export_unverified(ExportConfig(model=moe, out=out, target="sparse", type_name="Q8_0"))
    verify(VerifyConfig(model=moe, file=out)).require()
    name = "blk.1.ffn_up_exps.weight"
    tamper(out, name, lambda rows: np.where(np.arange(len(rows))[:, None] == 2 * 128 + 3, -rows, rows))
    assert failures(verify(VerifyConfig(model=moe, file=out))) == {
        name: "1 of 128 rows of expert 2 differ, row 3 is farther from its source than Q8_0 may be; row 3 has the other"
        " sign"
    }


def test_predictors_that_nobody_named_are_said_to_be_unproven(model: dict, tmp_path: Path):
    report = verify(VerifyConfig(model=model["sparse"], file=exported(model, "sparse", tmp_path)))
    report.require()
    assert report.notes == ["4 predictor tensors were not compared: give the folder with --predictors"]


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main([str(argument) for argument in arguments], prog_name="tsconvert")
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


def test_the_command_says_what_failed_and_exits_1(capsys, model: dict, tmp_path: Path):
    out = exported(model, "llama.cpp", tmp_path)
    tamper(out, "output.weight", lambda rows: -rows)
    code, stdout, stderr = call(capsys, "verify", model["llama.cpp"], out, "--json")
    assert code == 1
    report = json.loads(stdout)
    assert report["passed"] is False
    assert [failure["what"] for failure in report["failures"]] == ["output.weight"]
    assert stderr == (
        f"error: {out} is not what {model['llama.cpp']} makes it: output.weight: 4096 of 4096 rows differ, row 0 is not"
        " its source; row 0 has the other sign; export it again\n"
    )
    code, _, stderr = call(capsys, "verify", model["llama.cpp"], tmp_path / "none.gguf")
    assert (code, stderr) == (2, f"error: {tmp_path / 'none.gguf'}: no such file; give a GGUF file\n")


def test_export_verifies_and_keeps_a_file_that_failed(capsys, model: dict, tmp_path: Path, monkeypatch):
    """With a fault in the exporter: rows of q and k as Hugging Face has them."""
    out = tmp_path / "good.gguf"
    cli.main(["export-gguf", str(model["llama.cpp"]), "--out", str(out), "--json"], prog_name="tsconvert")
    assert json.loads(capsys.readouterr().out)["verification"]["passed"] is True
    monkeypatch.setattr(plan, "rope_index", lambda rows, heads, rotated: np.arange(rows))
    out = tmp_path / "bad.gguf"
    code, stdout, stderr = call(capsys, "export-gguf", model["llama.cpp"], "--out", out)
    assert code == 1
    assert out.is_file()
    assert "FAILED blk.0.attn_q.weight: " in stdout
    assert stderr.startswith(f"error: {out} is not what {model['llama.cpp']} makes it: blk.0.attn_q.weight: ")
    out = tmp_path / "unproven.gguf"
    cli.main(["export-gguf", str(model["llama.cpp"]), "--out", str(out), "--no-verify"], prog_name="tsconvert")
    assert out.is_file()
