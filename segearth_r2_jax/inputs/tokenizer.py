"""The tokenizer of a checkpoint: its own `tokenizer.json`, with the [SEG] token and with padding = end of text.

Both upstream facts matter: the label arithmetic of training relies on padding being the end-of-text token, and [SEG] is an ordinary
added token, not a special one. The file is read by the library that `transformers` gives it to as well; importing that takes a second.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import tokenizers
from etils import epath
from tokenizers import decoders, models, pre_tokenizers, trainers

from segearth_r2_jax.errors import UserError

SEG_TOKEN = "[SEG]"
END_OF_TEXT = "<|endoftext|>"


class Tokenizer:
    """Text to ids and back, as it stands: nothing is added, cut off, padded or cleaned up.

    end_id: the id that ends a text and pads; seg_id: that of [SEG].
    """

    def __init__(self, backend: tokenizers.Tokenizer, name: str):
        """`name` begins the message of the UserError that a tokenizer without an end of text gives; [SEG] is added if it is missing."""
        if backend.token_to_id(END_OF_TEXT) is None:
            raise UserError(
                f"{name}: has no {END_OF_TEXT} token, which ends answers and pads; expected a GPT-2 style tokenizer such as Phi-2's"
            )
        if backend.token_to_id(SEG_TOKEN) is None:
            backend.add_tokens([SEG_TOKEN])
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self.end_id: int = backend.token_to_id(END_OF_TEXT)
        self.seg_id: int = backend.token_to_id(SEG_TOKEN)

    def __len__(self) -> int:
        return self._backend.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of many texts, on all processors."""
        return [encoding.ids for encoding in self._backend.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=False)

    def to_json(self) -> str:
        """The content of a `tokenizer.json`."""
        return self._backend.to_str(pretty=True)


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of a `tokenizer.json` or of the folder that holds one, also in cloud storage (gs://); [SEG] is added if it is missing.

    Raises UserError if the file is absent, is no tokenizer, or has no `<|endoftext|>`.
    """
    file = epath.Path(path)
    if file.is_dir():
        file = file / "tokenizer.json"
    if not file.is_file():
        raise UserError(f"{file}: no such file; expected a tokenizer.json or a folder that holds one")
    try:
        backend = tokenizers.Tokenizer.from_buffer(file.read_bytes())
    # The Rust reader raises bare Exception for a file that it cannot parse.
    except Exception as error:
        raise UserError(f"{file}: not a tokenizer.json ({str(error).splitlines()[0]})") from error
    return Tokenizer(backend, str(file))


def train_tokenizer(texts: Iterable[str], vocab_size: int = 512) -> Tokenizer:
    """A byte-level BPE tokenizer fitted to `texts`, of the same make as Phi-2's: for models too small to carry a published one.

    At most `vocab_size` tokens plus [SEG]; any text can be encoded. The same texts give the same tokenizer.
    """
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return Tokenizer(backend, "the trained tokenizer")


def save_tokenizer(tokenizer: Tokenizer, path: str | os.PathLike[str]) -> None:
    """Writes one `tokenizer.json` that `load_tokenizer` reads back."""
    path = epath.Path(path)
    partial = path.with_name(path.name + f".{os.getpid()}.partial")
    try:
        partial.write_text(tokenizer.to_json(), encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
