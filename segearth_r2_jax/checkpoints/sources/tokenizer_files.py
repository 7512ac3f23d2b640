"""The tokenizer of a checkpoint on its way into another one: its files travel along, and [SEG] is added where it is missing.

The reference adds "[SEG]" as an ordinary token behind all others, then gives the table of embeddings as many rows as there are tokens
(`tokenizer.add_tokens("[SEG]")`, `resize_token_embeddings(len(tokenizer))`). Training saves the slow tokenizer's files (`vocab.json`,
`merges.txt`, `added_tokens.json`), from which the `tokenizer.json` that everything else reads is built here, for byte-level BPE as
CodeGen's, Phi-2's and GPT-2's.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segearth_r2_jax.checkpoints.json_files import read_json, write_json
from segearth_r2_jax.errors import UserError

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

SEG = "[SEG]"
FAST = "tokenizer.json"
_VOCABULARY, _MERGES, _ADDED = "vocab.json", "merges.txt", "added_tokens.json"
_CONFIG, _SPECIAL = "tokenizer_config.json", "special_tokens_map.json"
TOKENIZER_FILES = (FAST, _CONFIG, _SPECIAL, _ADDED, _VOCABULARY, _MERGES)

# The classes whose vocab.json and merges.txt are byte-level BPE as it is built here.
_BYTE_LEVEL = ("CodeGenTokenizer", "CodeGenTokenizerFast", "GPT2Tokenizer", "GPT2TokenizerFast")


def has_tokenizer(folder: Path) -> bool:
    """Whether `folder` holds a tokenizer's files, the fast one's or the slow one's."""
    return (folder / FAST).is_file() or ((folder / _VOCABULARY).is_file() and (folder / _MERGES).is_file())


def tokens_with_seg(folder: Path) -> tuple[int, bool]:
    """How many rows the tokenizer's tokens need once it has [SEG], and whether it has it already.

    That is the number of tokens, or more where their numbers have gaps.

    Raises:
        UserError: the files are no tokenizer.
    """
    tokenizer = _read(folder)
    known = tokenizer.token_to_id(SEG) is not None
    tokenizer.add_tokens([SEG])
    return max(tokenizer.get_vocab_size(), tokenizer.token_to_id(SEG) + 1), known


def write_tokenizer(source: Path, target: Path) -> bool:
    """Copy the tokenizer's files from one folder to another; [SEG] is added if it is missing, `tokenizer.json` is built if it is.

    Where nothing has to be changed a file keeps its bytes. Returns whether [SEG] was added.

    Raises:
        UserError: the files are no tokenizer.
    """
    tokenizer = _read(source)
    known = tokenizer.token_to_id(SEG) is not None
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    if known and (source / FAST).is_file():
        return False
    tokenizer.add_tokens([SEG])
    partial = target / f".{FAST}.partial"
    partial.write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    partial.replace(target / FAST)
    if not known:
        _note_seg(target, tokenizer.token_to_id(SEG))
    return not known


def _note_seg(folder: Path, number: int) -> None:
    """Enter the new token where the slow tokenizer and transformers look for it."""
    if (folder / _ADDED).is_file() or (folder / _VOCABULARY).is_file():
        added = read_json(folder / _ADDED) if (folder / _ADDED).is_file() else {}
        write_json(folder / _ADDED, {**added, SEG: number})
    if (folder / _CONFIG).is_file() and isinstance((config := read_json(folder / _CONFIG)).get("added_tokens_decoder"), dict):
        flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False, "special": False}
        decoder = {**config["added_tokens_decoder"], str(number): {"content": SEG, **flags}}
        write_json(folder / _CONFIG, {**config, "added_tokens_decoder": decoder})


def _read(folder: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    if not (folder / FAST).is_file():
        return _read_slow(folder)
    try:
        return Tokenizer.from_file(str(folder / FAST))
    # The Rust reader raises bare Exception for a file that it cannot parse.
    except Exception as error:
        raise UserError(f"{folder / FAST}: not a tokenizer.json ({_first_line(error)})") from error


def _read_slow(folder: Path) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    for name in (_VOCABULARY, _MERGES):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: no {FAST}, and no {name}; expected a tokenizer's files")
    config = read_json(folder / _CONFIG) if (folder / _CONFIG).is_file() else {}
    if config.get("tokenizer_class", _BYTE_LEVEL[0]) not in _BYTE_LEVEL:
        raise UserError(
            f"{folder / _CONFIG}: tokenizer_class is {config['tokenizer_class']!r:.80}; "
            f"without {FAST} only {', '.join(_BYTE_LEVEL)} can be read"
        )
    try:
        tokenizer = Tokenizer(models.BPE.from_file(str(folder / _VOCABULARY), str(folder / _MERGES)))
    except Exception as error:
        raise UserError(f"{folder}: {_VOCABULARY} and {_MERGES} are no tokenizer ({_first_line(error)})") from error
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(config.get("add_prefix_space", False)))
    tokenizer.decoder = decoders.ByteLevel()
    for number, token in sorted(_added_tokens(folder, config).items()):
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
        if tokenizer.token_to_id(token.content) != number:
            raise UserError(
                f"{folder}: the added token {token.content!r} has number {number}, but {tokenizer.token_to_id(token.content)} "
                "would be the next one; expected added tokens without gaps"
            )
    return tokenizer


def _added_tokens(folder: Path, config: Mapping[str, Any]) -> dict[int, AddedToken]:
    """The tokens beside the BPE's, by number: of tokenizer_config.json, added_tokens.json, and the special ones (which BPE may have)."""
    from tokenizers import AddedToken

    tokens: dict[int, AddedToken] = {}
    vocabulary = read_json(folder / _VOCABULARY)
    added = read_json(folder / _ADDED) if (folder / _ADDED).is_file() else {}
    special = read_json(folder / _SPECIAL) if (folder / _SPECIAL).is_file() else {}
    try:
        for content, number in added.items():
            tokens[int(number)] = AddedToken(content, normalized=True, special=False)
        for value in special.values():
            for entry in value if isinstance(value, list) else [value]:
                content = entry["content"] if isinstance(entry, dict) else entry
                number = added.get(content, vocabulary.get(content))
                if number is not None:
                    tokens[int(number)] = AddedToken(content, normalized=False, special=True)
        for number, entry in config.get("added_tokens_decoder", {}).items():
            flags = {name: bool(entry.get(name, False)) for name in ("lstrip", "rstrip", "single_word", "normalized", "special")}
            tokens[int(number)] = AddedToken(entry["content"], **flags)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{folder}: its added tokens cannot be read ({type(error).__name__}: {_first_line(error)})") from error
    return tokens


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
