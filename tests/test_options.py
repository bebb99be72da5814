"""Every option of every command has an effect where it is accepted, and is refused by name where it has none."""

from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tsconvert import cli
from tsconvert.common.options import Count, Option, only_with, setting
from tsconvert.convert.config import RelufyConfig

RELUFY = "relufy m --out o"
COPY = f"{RELUFY} --recover none --no-align"
FULL_ONLY = "to --recover full only; leave it out, or give --recover full"
RECOVERED = "to --recover local or full only; leave it out, or give --recover local"
MASKED = "with --predictors only; leave it out, or give --predictors"
NO_SWEEP = "without --recover none --no-align only, which copies the weights as they are; leave it out"
NO_TEXT = "without --recover none --no-align only, which reads no text; leave it out"
PREDICTORS = "predictors m"
ESTIMATE = "without --estimate only; leave it out, or leave --estimate out"
FROM = "without --from only; leave it out, or leave --from out"
EXPORT = "export-gguf m --out o"
LLAMA = "without --target llama.cpp only; leave it out, or leave --target out"
POWERINFER = "without --target powerinfer only; leave it out, or leave --target out"
NO_TEACHER = "with a --divergence above 0 only; leave it out"
STREAM = "without --stream only; leave it out, or leave --stream out"
TASKS = "to text only, and --tasks without --data reads none; leave it out, or give --data"
STORED = "without stored logits as --against only, which say themselves on which tokens to compare; leave it out"
BY_MIX = "without a size and --recipe only; leave it out, or leave those out"
ALONE = "without another size only; leave it out, or leave that out"
STATISTICS = "without --show-statistics only; leave it out, or leave --show-statistics out"
RECIPE = "without --recipe only; leave it out, or leave --recipe out"
TYPED = {"export-gguf": EXPORT, "quantize": "quantize f --out o"}
SHAPE = "with --shape only; leave it out, or give --shape"
NO_SHAPE = "without --shape only; leave it out, or leave --shape out"

# Command and option -> command lines without it, the option as given, and what follows `--option applies`.
REFUSED: dict[tuple[str, str], list[tuple[str, str, str]]] = {
    **{("imatrix", name): [("imatrix m --show-statistics", f"{name} {value}", STATISTICS)] for name, value in (
        ("--out", "o"), ("--data", "t.txt"), ("--tokens", "9"), ("--context", "9"), ("--slopes", "9"),
        ("--device", "cpu"), ("--seed", "1")
    )},
    ("imatrix", "--resume"): [("imatrix m --out o", "--resume", "with --slopes only; leave it out, or give --slopes")],
    **{(name, "--type"): [(f"{line} --target-bits 4", "--type Q8_0", BY_MIX)] for name, line in TYPED.items()},
    **{("quantize", option): [(f"quantize f --out o {other}", given, ALONE)] for option, given, other in (
        ("--target-bits", "--target-bits 4", "--target-size 4G"),
        ("--target-bytes-a-token", "--target-bytes-a-token 4G", "--target-bits 4"),
        ("--recipe", "--recipe r", "--target-size 4G"),
    )},
    **{("export-gguf", option): [
        (f"{EXPORT} --target powerinfer", given, POWERINFER), *([(f"{EXPORT} {other}", given, ALONE)] if other else [])
    ] for option, given, other in (
        ("--target-size", "--target-size 4G", ""),
        ("--target-bits", "--target-bits 4", "--target-size 4G"),
        ("--target-bytes-a-token", "--target-bytes-a-token 4G", "--target-bits 4"),
        ("--recipe", "--recipe r", "--target-size 4G"),
    )},
    ("quantize", "--pure"): [("quantize f --out o --target-bits 4", "--pure", BY_MIX)],
    **{(name, option): [(f"{line} --recipe r", f"{option} {value}", RECIPE)] for name, line in TYPED.items()
       for option, value in (("--tensor-type", "a=F16"), ("--output-tensor-type", "F16"),
                             ("--token-embedding-type", "F16"))},
    **{(name, "--candidate"): [(line, "--candidate F16", "to a size only; leave it out, or give --target-size")]
       for name, line in TYPED.items()},
    **{(name, "--data"): [
        (line, "--data t.txt", "to a size only; leave it out, or give --target-size"),
        (f"{line} --target-bits 4 --imatrix i", "--data t.txt",
         "without --imatrix only; leave it out, or leave --imatrix out"),
    ] for name, line in TYPED.items()},
    **{(name, "--density"): [(
        f"{line} --target-bits 4", "--density 0.1",
        "with --target-bytes-a-token only; leave it out, or give --target-bytes-a-token",
    )] for name, line in TYPED.items()},
    **{("bench", name): [("bench f", f"{name} {value}", SHAPE)] for name, value in (
        ("--density", "0.1"), ("--predicted", "0.1"), ("--rank", "32"), ("--type", "Q8_0"), ("--predictor-type", "Q8_0")
    )},
    ("bench", "--prompt"): [("bench --shape c", "--prompt 9", NO_SHAPE)],
    ("bench", "--sparsity"): [("bench --shape c", "--sparsity exact", NO_SHAPE)],
    **{("convert", name): [("convert --out o --recipe r", f"{name} {value}".strip(), RECIPE)] for name, value in (
        ("--budget", "1h"), ("--dry-run", ""), ("--activation", "reglu"), ("--target-sparsity", "0.8"),
        ("--type", "Q4_0"), ("--data", "t.txt"), ("--judge", "t.txt"), ("--seed", "1")
    )},
    ("convert", "--up-passes"): [
        ("convert --out o --recipe r", "--up-passes 1", RECIPE),
        (
            "convert m --out o --budget 1h --activation drelu", "--up-passes 1",
            "to --activation tswiglu only; leave it out, or give --activation tswiglu",
        ),
    ],
    ("convert", "--predictors"): [
        ("convert --out o --recipe r", "--no-predictors", RECIPE),
        (
            "convert m --out o --budget 1h", "--predictors",
            "to --activation drelu or reglu only; leave it out, or give --activation drelu",
        ),
    ],
    ("convert", "--set"): [
        ("convert m --out o --budget 1h", "--set a=b", "with --recipe only; leave it out, or give --recipe")
    ],
    ("relufy", "--time-limit"): [
        (RELUFY, "--time-limit 5m", FULL_ONLY),
        (
            f"{RELUFY} --recover full --baseline", "--time-limit 5m",
            "without --baseline only; leave it out, or leave --baseline out",
        ),
    ],
    ("relufy", "--resume"): [(COPY, "--resume", NO_SWEEP)],
    ("relufy", "--teacher"): [(COPY, "--teacher d", NO_SWEEP)],
    ("relufy", "--target-sparsity"): [(f"{RELUFY} --recover none", "--target-sparsity 0.9", RECOVERED)],
    ("relufy", "--up-passes"): [
        (RELUFY, "--up-passes 0.5", "to --activation tswiglu only; leave it out, or give --activation tswiglu")
    ],
    ("relufy", "--silenced-by"): [
        (RELUFY, "--silenced-by count", "with --target-sparsity only; leave it out, or give --target-sparsity")
    ],
    ("relufy", "--data"): [(COPY, "--data t.txt", NO_TEXT)],
    ("relufy", "--tokens"): [(COPY, "--tokens 1K", NO_TEXT)],
    ("relufy", "--context"): [(COPY, "--context 64", NO_TEXT)],
    ("relufy", "--steps"): [(f"{RELUFY} --recover none", "--steps 9", RECOVERED)],
    ("relufy", "--batch-tokens"): [(f"{RELUFY} --recover none", "--batch-tokens 64", RECOVERED)],
    ("relufy", "--learning-rate"): [(f"{RELUFY} --recover none", "--learning-rate 1e-3", RECOVERED)],
    ("relufy", "--attention"): [(f"{RELUFY} --recover none", "--no-attention", RECOVERED)],
    ("relufy", "--min-expert-tokens"): [(COPY, "--min-expert-tokens 9", NO_SWEEP)],
    ("relufy", "--full-tokens"): [(RELUFY, "--full-tokens 5M", FULL_ONLY)],
    ("relufy", "--full-batch-tokens"): [(RELUFY, "--full-batch-tokens 64", FULL_ONLY)],
    ("relufy", "--micro-tokens"): [(RELUFY, "--micro-tokens 64", FULL_ONLY)],
    ("relufy", "--full-learning-rate"): [(RELUFY, "--full-learning-rate 1e-4", FULL_ONLY)],
    ("relufy", "--cross-entropy"): [(RELUFY, "--cross-entropy 0", FULL_ONLY)],
    ("relufy", "--divergence"): [(RELUFY, "--divergence 2", FULL_ONLY)],
    ("relufy", "--likeliest"): [
        (RELUFY, "--likeliest 64", FULL_ONLY),
        (f"{RELUFY} --recover full --divergence 0", "--likeliest 64", NO_TEACHER),
        (
            f"{RELUFY} --recover full --top-logits 64", "--likeliest 64",
            "without --top-logits only; leave it out, or leave --top-logits out",
        ),
        (
            f"{RELUFY} --recover full --train-embeddings", "--likeliest 64",
            "without --train-embeddings only; leave it out, or leave --train-embeddings out",
        ),
    ],
    ("relufy", "--hidden"): [(RELUFY, "--hidden 1", FULL_ONLY)],
    ("relufy", "--top-logits"): [
        (RELUFY, "--top-logits 64", FULL_ONLY),
        (f"{RELUFY} --recover full --stream", "--top-logits 64", STREAM),
        (f"{RELUFY} --recover full --divergence 0", "--top-logits 64", NO_TEACHER),
    ],
    ("relufy", "--chat"): [
        (RELUFY, "--chat c.jsonl", FULL_ONLY),
        (f"{RELUFY} --recover full --stream", "--chat c.jsonl", STREAM),
    ],
    ("relufy", "--stream"): [(RELUFY, "--stream", FULL_ONLY)],
    ("relufy", "--baseline"): [(RELUFY, "--baseline", FULL_ONLY)],
    ("relufy", "--evaluations"): [(RELUFY, "--evaluations 2", FULL_ONLY)],
    ("relufy", "--patience"): [(RELUFY, "--patience 2", FULL_ONLY)],
    ("relufy", "--checkpointing"): [(RELUFY, "--checkpointing", FULL_ONLY)],
    ("relufy", "--attention-share"): [(RELUFY, "--attention-share 0.5", FULL_ONLY)],
    ("relufy", "--train-embeddings"): [(RELUFY, "--train-embeddings", FULL_ONLY)],
    ("relufy", "--report-to"): [(RELUFY, "--report-to tensorboard", FULL_ONLY)],
    ("relufy", "--predictors"): [(f"{RELUFY} --recover none", "--predictors p", RECOVERED)],
    ("relufy", "--from-predictors"): [
        (f"{RELUFY} --recover full", "--from-predictors p", MASKED),
        (f"{RELUFY} --predictors p", "--from-predictors p", FULL_ONLY),
    ],
    ("relufy", "--masked-share"): [
        (f"{RELUFY} --recover full", "--masked-share 0.5", MASKED),
        (f"{RELUFY} --predictors p", "--masked-share 0.5", FULL_ONLY),
    ],
    ("relufy", "--rank"): [
        (RELUFY, "--rank 7", MASKED),
        (
            f"{RELUFY} --recover full --predictors p --from-predictors q", "--rank 7",
            "without --from-predictors only; leave it out, or leave --from-predictors out",
        ),
    ],
    ("relufy", "--target-energy"): [(RELUFY, "--target-energy 0.5", MASKED)],
    ("relufy", "--stored-as"): [(RELUFY, "--stored-as Q4_0", MASKED)],
    ("relufy", "--precision"): [(COPY, "--precision bf16", NO_SWEEP)],
    ("relufy", "--device"): [(COPY, "--device cpu", NO_TEXT)],
    ("relufy", "--seed"): [(COPY, "--seed 1", NO_TEXT)],
    ("predictors", "--out"): [(f"{PREDICTORS} --estimate", "--out o", ESTIMATE)],
    ("predictors", "--resume"): [(f"{PREDICTORS} --estimate", "--resume", ESTIMATE)],
    ("predictors", "--dry-run"): [(f"{PREDICTORS} --estimate", "--dry-run", ESTIMATE)],
    ("predictors", "--max-loss"): [(f"{PREDICTORS} --estimate", "--max-loss 0.1", ESTIMATE)],
    ("predictors", "--max-density"): [(f"{PREDICTORS} --estimate", "--max-density 0.1", ESTIMATE)],
    ("predictors", "--everywhere"): [(f"{PREDICTORS} --estimate", "--everywhere", ESTIMATE)],
    ("predictors", "--from"): [(f"{PREDICTORS} --estimate", "--from p", ESTIMATE)],
    ("predictors", "--budget"): [
        (f"{PREDICTORS} --estimate", "--budget 0.1", ESTIMATE),
        (f"{PREDICTORS} --out o --from p", "--budget 0.1", FROM),
    ],
    ("predictors", "--rank"): [(f"{PREDICTORS} --out o --from p", "--rank 7", FROM)],
    ("export-gguf", "--split-max-size"): [(f"{EXPORT} --target powerinfer", "--split-max-size 5G", POWERINFER)],
    ("export-gguf", "--modelfile"): [
        (
            f"{EXPORT} --target powerinfer", "--modelfile",
            "without --target powerinfer or sparse only; leave it out, or leave --target out",
        ),
        (f"{EXPORT} --dry-run", "--modelfile", "without --dry-run only; leave it out, or leave --dry-run out"),
        (
            f"{EXPORT} --split-max-size 5G", "--modelfile",
            "without --split-max-size only; leave it out, or leave --split-max-size out",
        ),
    ],
    ("export-gguf", "--pure"): [
        (f"{EXPORT} --target powerinfer", "--pure", POWERINFER), (f"{EXPORT} --target-bits 4", "--pure", BY_MIX)
    ],
    ("export-gguf", "--predictors"): [(f"{EXPORT} --target llama.cpp", "--predictors p", LLAMA)],
    ("export-gguf", "--predictor-type"): [(f"{EXPORT} --target llama.cpp", "--predictor-type Q8_0", LLAMA)],
    ("export-gguf", "--separate-predictors"): [
        (
            f"{EXPORT} --target {target}", "--separate-predictors",
            "without --target llama.cpp or powerinfer only; leave it out, or leave --target out",
        )
        for target in ("llama.cpp", "powerinfer")
    ],
    ("export-gguf", "--attention-share"): [
        (
            f"{EXPORT} --target {target}", "--attention-share 0.5",
            "without --target llama.cpp or powerinfer only; leave it out, or leave --target out",
        )
        for target in ("llama.cpp", "powerinfer")
    ],
    ("export-gguf", "--profile"): [
        (f"{EXPORT} --target llama.cpp", "--profile p", LLAMA),
        (
            f"{EXPORT} --no-order", "--profile p",
            "without --no-order or with --vram only; leave it out, or leave --no-order out",
        ),
    ],
    ("export-gguf", "--order"): [(f"{EXPORT} --target llama.cpp", "--no-order", LLAMA)],
    ("export-gguf", "--vram"): [
        (EXPORT, "--vram 8G", "to --target powerinfer only; leave it out, or give --target powerinfer")
    ],
    ("run", "--system"): [("run f -p p", "--system s", "with --chat only; leave it out, or give --chat")],
    ("run", "--audit"): [
        (
            "run f -p p --stats --sparsity exact", "--audit",
            "to --sparsity auto or predicted only; leave it out, or give --sparsity auto",
        ),
        ("run f -p p", "--audit", "with --stats or --json only; leave it out, or give --stats"),
    ],
    ("eval", "--ctx"): [
        ("eval m --tasks agreement", "--ctx 64", TASKS), ("eval m --against l.safetensors", "--ctx 64", STORED),
    ],
    ("eval", "--tokens"): [
        ("eval m --tasks agreement", "--tokens 1K", TASKS),
        ("eval m --against l.safetensors", "--tokens 1K", STORED),
        ("eval m --chunks 3", "--tokens 1K", "without --chunks only; leave it out, or leave --chunks out"),
    ],
    ("eval", "--chunks"): [
        ("eval m --tasks agreement", "--chunks 3", TASKS), ("eval m --against l.safetensors", "--chunks 3", STORED),
    ],
    ("eval", "--method"): [
        ("eval m --tasks agreement", "--method papers", TASKS),
        ("eval m --against l.safetensors", "--method papers", STORED),
    ],
    ("eval", "--parse-special"): [
        ("eval m --tasks agreement", "--no-parse-special", TASKS),
        ("eval m --against l.safetensors", "--parse-special", STORED),
    ],
    ("eval", "--stride"): [
        ("eval m --tasks agreement", "--stride 64", TASKS), ("eval m --against l.safetensors", "--stride 64", STORED),
    ],
    ("eval", "--against"): [("eval m --tasks agreement", "--against d", TASKS)],
    ("eval", "--save-logits"): [("eval m --tasks agreement", "--save-logits l.safetensors", TASKS)],
    ("eval", "--top"): [("eval m", "--top 9", "with --save-logits only; leave it out, or give --save-logits")],
    ("eval", "--task-folder"): [("eval m", "--task-folder f", "with --tasks only; leave it out, or give --tasks")],
    ("eval", "--limit"): [("eval m", "--limit 9", "with --tasks only; leave it out, or give --tasks")],
    ("eval", "--threads"): [
        ("eval m --against d", "--threads 2", "to a GGUF file only, where PyTorch does not choose them; leave it out")
    ],
    ("plan", "--measure"): [
        (
            "plan m --bandwidth 9 --gflops 9 --disk 9G --disk-speed 9", "--measure",
            "to what is not given only; leave it out",
        )
    ],
}  # fmt: skip
# These have an effect whatever else is asked for, or are refused once the model is read (the tests of their folders).
ALWAYS = {
    "convert": "--out --recipe --resume",
    "relufy": "--out --dtype --max-shard-size --dry-run --activation --align --recover --shift",
    "profile": "--out --powerinfer-dir --data --tokens --context --device --seed",
    "predictors": "--estimate --data --tokens --context --target-energy --stored-as --model-bits --steps"
    " --batch-tokens --learning-rate --precision --device --seed",
    "imatrix": "--show-statistics",
    "export-gguf": "--out --target --verify --dry-run --imatrix --name --metadata --pre --threads",
    "quantize": "--out --split-max-size --dry-run --imatrix --allow-requantize --target-size --threads",
    "run": "--prompt --chat --tokens --stop --ignore-eos --temp --top-k --top-p --min-p --repeat-penalty"
    " --repeat-last-n --seed --sparsity --context --threads --stats",
    "serve": "--host --port --api-key --queue --sparsity --context --threads",
    "bench": "--tokens --repetitions --threads --shape",
    "eval": "--data --baseline --tasks --sparsity",
    "verify": "--predictors --logits",
    "check": "--out --set --resume --junit --baseline --update-baseline",
    "inspect": "--tensors",
    "plan": "--type --density --predicted --rank --tokens --batch --ctx --bandwidth --cores --memory --gflops --disk"
    " --disk-speed",
    "report": "--out",
    "demo": "--model --out --resume",
}


def command_of(name: str) -> click.Command:
    command = cli.main.get_command(click.Context(cli.main), name)
    assert command is not None
    return command


def options_of(name: str) -> Iterator[tuple[str, click.Option]]:
    for param in command_of(name).params:
        if isinstance(param, click.Option):
            yield max(param.opts, key=len), param


def said(capsys: pytest.CaptureFixture[str], line: str) -> str:
    """What the command line says as it exits with 2."""
    with pytest.raises(SystemExit) as stop:
        cli.main(line.split(), prog_name="tsconvert")
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_option_is_always_of_effect_or_has_a_case_where_it_is_refused(command: str):
    always = {*ALWAYS[command].split(), "--json", "--debug"}
    refused = {option for name, option in REFUSED if name == command}
    found = dict(options_of(command))
    assert not always & refused
    assert always | refused == set(found)
    assert {name for name, param in found.items() if isinstance(param, Option) and param.rules} == refused


@pytest.mark.parametrize(("command", "option"), REFUSED)
def test_an_option_without_effect_is_refused_by_name(capsys, command: str, option: str):
    cases = REFUSED[command, option]
    (rules,) = [param.rules for name, param in options_of(command) if name == option and isinstance(param, Option)]
    assert len({case for _, _, case in cases}) == len(rules)
    for line, given, applies in cases:
        assert said(capsys, f"{line} {given}") == f"error: {given.split()[0]} applies {applies}\n"


def test_all_options_without_effect_are_named_at_once_even_where_one_is_missing(capsys):
    line = "relufy tiny-mistral --dry-run --rank 7 --from-predictors /nonexistent --target-energy 0.5 --full-tokens 5M"
    sentence = (
        "error: --full-tokens applies to --recover full only and --from-predictors, --rank and --target-energy apply"
        " with --predictors only; leave them out, or give --recover full and --predictors\n"
    )
    assert said(capsys, line) == said(capsys, f"{line} --out o") == sentence


def test_options_of_single_layers_are_refused_where_a_sparse_model_has_none_to_train(capsys, dense, tmp_path: Path):
    sparse = tmp_path / "sparse"
    cli.main(["relufy", str(dense), "--out", str(sparse), "--recover", "none", "--no-align"])
    line = f"relufy {sparse} --out {tmp_path / 'o'} --recover full --steps 5 --no-attention"
    assert said(capsys, line) == (
        f"error: --steps, --attention: {sparse} is sparse already, so its layers are not trained one by one;"
        " leave it out\n"
    )


def test_options_that_a_model_or_file_leaves_without_effect_are_refused_once_it_is_read(capsys, dense, tmp_path: Path):
    file, spec, counts = tmp_path / "f.gguf", tmp_path / "s.toml", tmp_path / "p.safetensors"
    spec.write_text('format = 1\n[outputs]\nfile = "f.gguf"\n[limits]\nfile.size_bytes.max = "10M"\n')
    cli.main(f"export-gguf {dense} --out {file} --no-verify".split())
    cli.main(f"relufy {dense} --out {tmp_path / 'sparse'} --recover none --no-align".split())
    cli.main(f"profile {tmp_path / 'sparse'} --out {counts} --tokens 1K --context 128".split())
    capsys.readouterr()
    sentences = {
        f"verify {dense} {file} --predictors p": f"--predictors: {file} is a file for llama.cpp, which has none",
        f"run {file} -p a --stats --audit": f"--audit: {file} runs in dense mode and misses nothing",
        f"export-gguf {dense} --out o --predictor-type Q8_0": "--predictor-type: the file has no predictors",
        f"inspect {counts} --tensors": f"--tensors: {counts} (profile) is not listed by tensor",
        f"check {spec} --resume": f"--resume: {spec} has no stages that could be kept",
        f"check {spec} --update-baseline": f"--update-baseline: no limit of {spec} has a drift",
        f"check {spec} --baseline b.json": f"--baseline: no limit of {spec} has a drift",
    }
    for line, sentence in sentences.items():
        assert said(capsys, line).startswith(f"error: {sentence}; leave it out")


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_option_says_in_a_sentence_what_it_is(command: str):
    for name, param in options_of(command):
        assert param.help is not None, name
        assert param.help.endswith("."), name
        assert len(param.help) > 12, name
    assert all(param.help for param in command_of(command).params if isinstance(param, click.Argument))


def test_a_default_is_the_dataclass_s(monkeypatch):
    command = command_of("relufy")
    for param in command.params:
        if isinstance(param, Option) and param.config is RelufyConfig and isinstance(param.type, Count):
            default = RelufyConfig.__dataclass_fields__[param.field].default
            assert param.type_cast_value(click.Context(command), param.default) == default


def test_an_option_of_a_field_without_default_is_required():
    option = click.Command("c", params=[])
    setting(RelufyConfig, "out", "The folder.")(option)
    assert option.params[0].required


def test_a_rule_names_what_an_option_needs():
    rule = only_with("--recover", "local", "full")
    assert (rule.where, rule.instead) == ("to --recover local or full only", "give --recover local")
    assert rule.holds({"recover": "full"})
    assert not rule.holds({"recover": "none"})
