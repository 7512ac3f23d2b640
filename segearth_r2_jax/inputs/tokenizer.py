"""The tokenizer of a checkpoint: its own `tokenizer.json`, with the [SEG] token and with padding = end of text.

Both upstream facts matter: the label arithmetic of training relies on padding being the end-of-text token, and [SEG] is an ordinary
added token, not a special one.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from etils import epath

from segearth_r2_jax.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# transformers says at import that it found no PyTorch, which it does not need here.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

SEG_TOKEN = "[SEG]"
END_OF_TEXT = "<|endoftext|>"


def load_tokenizer(path: str | os.PathLike[str]) -> PreTrainedTokenizerFast:
    """The tokenizer of a `tokenizer.json` or of the folder that holds one, also in cloud storage (gs://); [SEG] is added if it is missing.

    Raises UserError if the file is absent, is no tokenizer, or has no `<|endoftext|>`.
    """
    file = epath.Path(path)
    if file.is_dir():
        file = file / "tokenizer.json"
    if not file.is_file():
        raise UserError(f"{file}: no such file; expected a tokenizer.json or a folder that holds one")
    from transformers import PreTrainedTokenizerFast

    try:
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / "tokenizer.json"
            local.write_bytes(file.read_bytes())
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(local))
    # The Rust reader raises bare Exception for a file that it cannot parse.
    except Exception as error:
        raise UserError(f"{file}: not a tokenizer.json ({str(error).splitlines()[0]})") from error
    return _complete(tokenizer, str(file))


def train_tokenizer(texts: Iterable[str], vocab_size: int = 512) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer fitted to `texts`, of the same make as Phi-2's: for models too small to carry a published one.

    At most `vocab_size` tokens plus [SEG]; any text can be encoded. The same texts give the same tokenizer.
    """
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return _complete(PreTrainedTokenizerFast(tokenizer_object=backend), "the trained tokenizer")


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, path: str | os.PathLike[str]) -> None:
    """Writes one `tokenizer.json` that `load_tokenizer` reads back."""
    path = epath.Path(path)
    partial = path.with_name(path.name + f".{os.getpid()}.partial")
    try:
        partial.write_text(tokenizer.backend_tokenizer.to_str(pretty=True), encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def seg_token_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """The id of [SEG]."""
    return tokenizer.convert_tokens_to_ids(SEG_TOKEN)


def _complete(tokenizer: PreTrainedTokenizerFast, name: str) -> PreTrainedTokenizerFast:
    if END_OF_TEXT not in tokenizer.get_vocab():
        raise UserError(
            f"{name}: has no {END_OF_TEXT} token, which ends answers and pads; expected a GPT-2 style tokenizer such as Phi-2's"
        )
    tokenizer.eos_token = tokenizer.pad_token = END_OF_TEXT
    if SEG_TOKEN not in tokenizer.get_vocab():
        tokenizer.add_tokens(SEG_TOKEN)
    return tokenizer
