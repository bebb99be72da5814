"""Byte-level BPE vocabularies: tokens and merges from tokenizer.json, the pre-tokenizer by its fingerprint."""

from hashlib import sha256
from pathlib import Path
from typing import Any

from ...common.errors import TsconvertError
from ...model.files.gguf.vocabulary import CONTROL, NORMAL, UNUSED, USER_DEFINED
from .vocabulary import Vocabulary, looks_special

# llama.cpp knows a pre-tokenizer by the SHA-256 of the token ids that it makes of this text.
_CHECK_TEXT = (
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n🚀 (normal) 😶\u200d🌫️ (multiple emojis concatenated) ✅ 🦙🦙 3 33"
    " 333 3333 33333 333333 3333333 33333333 3.3 3..3 3...3 កាន់តែពិសេសអាច😁 ?我想在apple工作1314151天～"  # noqa: RUF001
    " ------======= нещо на Български ''''''```````\"\"\"\"......!!!!!!?????? I've been 'told he's there, 'RE you sure?"
    " 'M not sure I'll make it, 'D you like some tea? We'Ve a'lL"
)
KNOWN = {
    "855059429035d75a914d1eda9f10a876752e281a054a7a3d421ef0533e5b6249": "smollm",
    "63b97e4253352e6f357cc59ea5b583e3a680eaeaf2632188c2b952de2588485e": "tekken",
    "0ef9807a4087ebef797fc749390439009c3b9eda9ad1a097abbe738f486c01e5": "llama-bpe",
    "3ce83efda5659b07b1ad37ca97ca5797ea4285d9b9ab0dc679e4a720c9da7454": "gpt-2",
    "0fe1cf6eda062318a1af7270f3331a85c539a01778ff948e24388e949c5282f4": "gpt-2",
    "0e9433cbbb161f89e264eb32e8e64bfe69e834973ffca5d41d3948a604a3e2a3": "tekken",  # without BOS, there called pixtral
    "049ecf7629871e3041641907f3de7c733e4dbfdc736f57d882ba0b0845599754": "deepseek-llm",
    "347715f544604f9118bb75ed199f68779f423cabb20db6de6f31b908d04d7821": "deepseek-coder",
    "9d032fcbd5501f4a38150912590928bfb36091efb5df11b8e2124b0390e3fb1e": "falcon3",
    "c136ed14d01c2745d4f60a9596ae66800e2b61fa45643e72436041855ad4089d": "smaug-bpe",
    "c7ea5862a53e4272c035c8238367063e2b270d51faa48c0f09e9d5b54746c360": "poro-chat",
    "7fc505bd3104ca1083b150b17d088b59534ede9bde81f0dd2090967d7fe52cee": "viking",
    "1431a23e583c97432bc230bff598d103ddb5a1f89960c8f1d1051aaa944d0b35": "minerva-7b",
    "d4c8f286ea6b520b3d495c4455483cfa2302c0cfcd4be05d781b6a8a0a7cdaf1": "megrez",
    "d5f1dd6f980fec569fb218a81a7658ac45fc56b38c5a0adeb1c232fbe04ef5ec": "seed-coder",
    "e636dc30a262dcc0d8c323492e32ae2b70728f4df7dfe9737d9f920a282b8aea": "qwen2",
    "d4540891389ea895b53b399da6ac824becc30f2fba0e9ddbb98f92e55ca0e97c": "qwen2",  # with its end
    "b3f499bb4255f8ca19fccd664443283318f2fd2414d5e0b040fbdd0cc195d6c5": "deepseek-r1-qwen",
    "a8594e3edff7c29c003940395316294b2c623e09894deebbc65f33f1515df79e": "dbrx",  # Phi-4, OLMo 2: GPT-4's ids
    "ccc2ef013c104be7bae2965776d611e1d7a8a2a9c547dd93a682c9a9fc80352e": "gpt-4o",  # Phi-4-mini
    "6221ad2852e85ce96f791f476e0b390cf9b474c9e3d1362f53a24a06dc8220ff": "refact",  # Granite
    "35d91631860c815f952d711435f48d356ebac988362536bed955d43bfa436e34": "starcoder",
    "b6e8e1518dc4305be2fe39c313ed643381c4da5db34a98f6a04c093f8afbe99b": "chatglm-bpe",
    "81d72c7348a9f0ebe86f23298d37debe0a5e71149e29bd283904c02262b27516": "chatglm-bpe",
    "a1336059768a55c99a734006ffb02203cd450fed003e9a71886c88acf24fdbc2": "glm4",
    "9ca2dd618e8afaf09731a7cf6e2105b373ba6a1821559f258b272fe83e6eb902": "glm4",
    "cdf5f35325780597efd76153d4d1c16778f766173908894c04afc20108536267": "glm4",
    "b0a6b1c0bd5998ebd9df08611efde34a4ff03faed45ae09c43e6b31ebd4b94cf": "a.x-4.0",
    "f6791d196f87ce6b56a7d234be618e0d58f8cda3549416635b2bebcd22cd95c4": "midm-2.0",
    "a1e163ecab2e718a4c829d1148b6e86824ec36163bb71941c3dca9cd5ac25756": "mellum",
    "1994ffd01900cfb37395608534236ecd63f2bd5995d6cb1004dda1af50240f15": "trillion",
    "53e325976a6e142379c19b09afcae354f2f496f147afa8f9e189a33fe4e3024e": "granite-docling",
    "4a2e2abae11ca2b86d570fc5b44be4d5eb5e72cc8f22dd136a94b37da83ab665": "kormo",
}
"""Fingerprints -> names in llama.cpp's conversion/base.py, of tokenizers that models of the families come with."""


def read(content: dict[str, Any], hf: Any, folder: Path, pre: str | None) -> Vocabulary:
    """The vocabulary of a byte-level tokenizer.json.

    Args:
        content: the parsed tokenizer.json.
        hf: transformers' tokenizer of the folder.
        pre: the pre-tokenizer's name, or None to find it.

    Raises:
        TsconvertError: the pre-tokenizer is not known and was not named.
    """
    vocab: dict[str, int] = content["model"]["vocab"]
    by_id = {index: token for token, index in vocab.items()}
    added = {token["id"]: token for token in content.get("added_tokens", [])}
    tokens, types = [], []
    for index in range(max([*vocab.values(), *added]) + 1):
        if index in added:
            text = str(added[index]["content"])
            tokens.append(text)
            types.append(CONTROL if added[index].get("special") or looks_special(text) else USER_DEFINED)
        else:
            tokens.append(by_id.get(index, f"[PAD{index}]"))
            types.append(NORMAL if index in by_id else UNUSED)
    merges = [_merge(merge) for merge in content["model"]["merges"]]
    name = pre if pre is not None else identify(hf, folder)
    return Vocabulary(model="gpt2", pre=name, tokens=tokens, types=types, merges=merges)


def identify(hf: Any, folder: Path) -> str:
    """llama.cpp's name for a tokenizer's pre-tokenizer.

    Raises:
        TsconvertError: llama.cpp's list does not have it; retrained and extended vocabularies are not in it either.
    """
    bare = hf.encode(_CHECK_TEXT, add_special_tokens=False)
    for ids in ([hf.bos_token_id, *bare], bare, hf.encode(_CHECK_TEXT)):
        fingerprint = sha256(str(list(ids)).encode()).hexdigest()
        if fingerprint in KNOWN:
            return KNOWN[fingerprint]
    raise TsconvertError(
        f"{folder}: the pre-tokenizer is not in llama.cpp's list (fingerprint {fingerprint[:12]}); name the one that"
        f" splits text the same way with --pre NAME, one of {', '.join(sorted(set(KNOWN.values())))}"
    )


def _merge(merge: str | list[str]) -> str:
    if isinstance(merge, str):
        return merge
    return " ".join(part.replace(" ", "Ġ") for part in merge)
