from pathlib import Path

import pytest

from tsconvert import embedded
from tsconvert.common.errors import TsconvertError
from tsconvert.text.tokenizer import load_tokenizer


def test_the_tokenizer_begins_a_text_as_the_model_was_trained():
    tokenizer = load_tokenizer(embedded.folder("tiny-mistral"))
    ids = tokenizer("The Senate").input_ids
    assert ids[0] == 1
    assert tokenizer.decode(ids[1:]) == "The Senate"


def test_a_damaged_tokenizer_is_named(tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TsconvertError, match="the tokenizer cannot be read"):
        load_tokenizer(tmp_path)
