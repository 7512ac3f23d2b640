"""An image and an instruction give words and masks on the image's pixels; a small random network stands for a trained one."""

import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny_checkpoint

from segearth_r2_jax.errors import UserError
from segearth_r2_jax.inference import segment
from segearth_r2_jax.inference.segment import MASKS_PER_PASS, Segmenter, before_image, make_target, phrases
from segearth_r2_jax.inputs.conversation import TEMPLATES, encode_prompt, expand, pad_row
from segearth_r2_jax.inputs.image_processing import normalize_for_siglip, squash
from segearth_r2_jax.inputs.letterbox import Letterbox
from segearth_r2_jax.inputs.tokenizer import save_tokenizer, train_tokenizer
from segearth_r2_jax.models.binding import abstract_module, bind
from segearth_r2_jax.models.segearth_r2 import SegEarthR2

NEW_TOKENS = 10
RNG = np.random.default_rng(0)
IMAGES = {
    "wide": RNG.integers(0, 256, (70, 211, 3)).astype(np.uint8),
    "tall": RNG.integers(0, 256, (211, 70, 3)).astype(np.uint8),
    "flat": np.full((50, 60, 3), 200, np.uint8),
    "frame": RNG.integers(0, 256, (128, 128, 3)).astype(np.uint8),
    "large": RNG.integers(0, 256, (900, 700, 3)).astype(np.uint8),
    "row": RNG.integers(0, 256, (1, 500, 3)).astype(np.uint8),
    "column": RNG.integers(0, 256, (500, 1, 3)).astype(np.uint8),
    "pixel": np.full((1, 1, 3), 7, np.uint8),
}


@pytest.fixture(scope="module")
def segmenter(checkpoint_dir):
    return Segmenter.load(checkpoint_dir)


@pytest.fixture(scope="module")
def answers(segmenter):
    return {name: segmenter.segment(image, "find the roof", max_new_tokens=NEW_TOKENS) for name, image in IMAGES.items()}


@pytest.mark.parametrize("name", IMAGES)
def test_masks_lie_on_the_pixels_of_the_image(answers, name):
    answer, (height, width) = answers[name], IMAGES[name].shape[:2]
    assert len(answer.targets) == answer.answer.count("[SEG]") == len(answer.frame_logits)
    assert answer.targets
    letterbox = Letterbox(height, width, tiny_checkpoint.IMAGE_SIZE)
    for target, logits in zip(answer.targets, answer.frame_logits, strict=True):
        assert target.mask.dtype == bool
        np.testing.assert_array_equal(target.mask, letterbox.restore(logits) > 0)
        assert target.area == target.mask.sum()
        assert 0 <= target.score <= 1
        if target.box is None:
            assert not target.area
            continue
        left, top, right, bottom = target.box
        outside = target.mask.copy()
        outside[top:bottom, left:right] = False
        assert not outside.any()
        inside = target.mask[top:bottom, left:right]
        assert inside[0].any()
        assert inside[-1].any()
        assert inside[:, 0].any()
        assert inside[:, -1].any()


def test_the_answer_depends_on_the_image(answers):
    assert len({answer.answer for answer in answers.values()}) > 1


def test_an_answer_without_end_is_cut_at_the_limit_and_says_so(answers):
    assert not any(answer.finished for answer in answers.values())


def test_the_same_question_twice_gives_the_same_answer(segmenter, answers):
    again = segmenter.segment(IMAGES["wide"], "find the roof", max_new_tokens=NEW_TOKENS)
    assert again.answer == answers["wide"].answer
    np.testing.assert_array_equal(again.frame_logits, answers["wide"].frame_logits)


def test_an_image_encoded_before_gives_the_same_answer(segmenter, answers):
    encoded = segmenter.encode(IMAGES["tall"])
    again = segmenter.segment(encoded, "find the roof", max_new_tokens=NEW_TOKENS)
    np.testing.assert_array_equal(again.frame_logits, answers["tall"].frame_logits)
    other = segmenter.segment(encoded, "what is that, and where does the river go", max_new_tokens=NEW_TOKENS)
    assert other.targets[0].mask.shape == IMAGES["tall"].shape[:2]


INSTRUCTIONS = ("find the roof", "the river", "what is that, and where does the river go under the roofs")


@pytest.fixture(scope="module")
def one_by_one(segmenter):
    """(image, instruction) -> ids, and states of [SEG]: every token by a pass over the whole sequence so far, no cache and no prefix."""
    abstract = abstract_module(lambda rngs: SegEarthR2(segmenter.config, rngs=rngs))
    room = 448

    @jax.jit
    def start(params, squashed, token_ids, image_start):
        model = bind(abstract, params)
        return model.prompt_embeddings(token_ids, model.image_tokens(normalize_for_siglip(squashed, np.float32)), image_start)

    @jax.jit
    def step(params, embeds, length):
        phi = bind(abstract, params).phi
        hidden = phi(embeds, (np.arange(room) < length)[None]).hidden[:, length - 1]
        token = phi.logits(hidden).argmax(-1)
        return hidden[0], token[0], embeds.at[:, length].set(phi.embed(token))

    def answer(image, instruction):
        row = expand(encode_prompt(segmenter.tokenizer, segmenter.template, instruction), segmenter.config.siglip.num_tokens)
        padded = pad_row(row, room, 1)
        squashed = squash(image, segmenter.config.siglip.image_size)
        embeds = start(segmenter._params, squashed[None], padded["token_ids"][None], padded["image_start"][None])
        tokens, hidden = [], []
        for length in range(row.length, row.length + NEW_TOKENS + 1):
            state, token, embeds = step(segmenter._params, embeds, length)
            tokens.append(int(token))
            hidden.append(np.asarray(state))
        # The state of a token is that of the step after the one that chose it.
        return tokens[:-1], [state for token, state in zip(tokens, hidden[1:], strict=False) if token == segmenter.seg_id]

    return answer


def test_instructions_that_share_an_image_are_answered_as_if_they_did_not(segmenter, one_by_one):
    texts = set()
    for name in ("wide", "flat", "tall"):
        encoded = segmenter.encode(IMAGES[name])
        together = segmenter.segment_batch([encoded] * len(INSTRUCTIONS), INSTRUCTIONS, max_new_tokens=NEW_TOKENS)
        for instruction, answer in zip(INSTRUCTIONS, together, strict=True):
            ids, states = one_by_one(IMAGES[name], instruction)
            assert answer.answer == segmenter.tokenizer.decode(ids).strip()
            shape = (1, len(states), segmenter.config.phi.hidden_size)
            generation = SimpleNamespace(seg_counts=np.array([len(states)]), seg_states=np.reshape(states, shape))
            (logits,) = segmenter._frame_logits([encoded.features], generation)
            np.testing.assert_allclose(answer.frame_logits, logits, atol=1e-3)
            np.testing.assert_array_equal(answer.frame_logits > 0, logits > 0)
            texts.add(answer.answer)
        assert np.abs(together[0].frame_logits[0] - together[1].frame_logits[0]).max() > 0.01
    assert len(texts) > 1


def test_every_prompt_begins_with_the_ids_before_the_image(segmenter):
    for template in TEMPLATES:
        before = before_image(segmenter.tokenizer, template)
        row = expand(encode_prompt(segmenter.tokenizer, template, "the river"), 5)
        assert row.image_start == len(before)
        np.testing.assert_array_equal(row.token_ids[: len(before)], before)


def test_other_sizes_instructions_and_numbers_of_masks_compile_nothing(segmenter, answers):
    compiled = segmenter._compiled
    before = [function._cache_size() for function in compiled]
    for shape in ((33, 90, 3), (400, 30, 3)):
        segmenter.segment(np.full(shape, 90, np.uint8), "the river and the roof", max_new_tokens=NEW_TOKENS)
    assert [function._cache_size() for function in compiled] == before


def test_many_instructions_compile_as_often_as_their_batches_are_powers_of_two(segmenter, answers):
    """Batches of 1, 2, 4 and 8 rows, whatever the number of instructions, their lengths, and which of them share an image."""
    shared = segmenter.encode(IMAGES["frame"])
    others = [segmenter.encode(IMAGES[name]) for name in ("wide", "tall", "pixel")]

    def ask(number, instruction):
        images = [shared] * max(1, number - 3) + others[: min(3, number - 1)]
        segmenter.segment_batch(images, [instruction] * number, max_new_tokens=NEW_TOKENS)

    for number in (1, 2, 4, 8):
        ask(number, "find the roof")
    before = [function._cache_size() for function in segmenter._compiled]
    for number in (1, 3, 5, 6, 7):
        ask(number, "the river and the roof " * (number % 3 + 1))
    assert [function._cache_size() for function in segmenter._compiled] == before
    ask(1, "the river and the roof " * 20)  # of another bucket
    assert [function._cache_size() for function in segmenter._compiled] == [before[0], before[1] + 1, before[2]]


def test_an_answer_may_have_more_masks_than_one_pass_decodes(segmenter, answers):
    answer = max(answers.values(), key=lambda a: len(a.targets))
    assert len(answer.targets) > MASKS_PER_PASS
    assert np.isfinite(answer.frame_logits).all()
    assert all(logits.any() for logits in answer.frame_logits)


def test_a_batch_answers_each_question_as_if_it_were_alone(segmenter, answers):
    names = ["wide", "flat", "pixel"]
    batch = segmenter.segment_batch([IMAGES[n] for n in names], ["find the roof"] * 3, max_new_tokens=NEW_TOKENS)
    for name, answer in zip(names, batch, strict=True):
        assert answer.answer == answers[name].answer
        np.testing.assert_allclose(answer.frame_logits, answers[name].frame_logits, atol=1e-4)
        assert [t.mask.shape for t in answer.targets] == [IMAGES[name].shape[:2]] * len(answer.targets)
    assert segmenter.segment_batch([], []) == []


@pytest.mark.parametrize("instruction", ["", "  \n"])
def test_an_empty_instruction(segmenter, instruction):
    with pytest.raises(UserError, match="instruction is empty"):
        segmenter.segment(IMAGES["flat"], instruction, max_new_tokens=NEW_TOKENS)


def test_an_instruction_beyond_the_length_of_the_model(segmenter):
    with pytest.raises(UserError, match="too long"):
        segmenter.segment(IMAGES["flat"], "find the roof " * 3000, max_new_tokens=NEW_TOKENS)


def test_weights_in_8_bits_answer_alike(checkpoint_dir, segmenter, answers):
    """Of a network of random weights whole answers need not agree; the first masks' logits are close where they do."""
    rounded = Segmenter.load(checkpoint_dir, int8=True)
    assert rounded.int8
    kernel = rounded._params["phi"]["layers"]["mlp"]["fc1"]["kernel"]
    assert (kernel.values.dtype, kernel.values.nbytes) == (np.int8, segmenter._params["phi"]["layers"]["mlp"]["fc1"]["kernel"].size)
    exact, ours = answers["wide"], rounded.segment(IMAGES["wide"], "find the roof", max_new_tokens=NEW_TOKENS)
    assert exact.answer.split("[SEG]")[0] == ours.answer.split("[SEG]")[0]
    difference = np.abs(exact.frame_logits[0] - ours.frame_logits[0])
    assert 0 < difference.max() < 0.1 * np.abs(exact.frame_logits[0]).max()


class TestLoading:
    @pytest.fixture
    def folder(self, checkpoint_dir, tmp_path):
        return shutil.copytree(checkpoint_dir, tmp_path / "checkpoint")

    def test_not_a_folder(self, tmp_path):
        with pytest.raises(UserError, match="nowhere"):
            Segmenter.load(tmp_path / "nowhere")

    def test_without_weights(self, folder):
        shutil.rmtree(folder / "base")
        with pytest.raises(UserError, match="no parameters"):
            Segmenter.load(folder)

    def test_without_a_template(self, folder):
        config = json.loads((folder / "config.json").read_text())
        del config["template"]
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match="template"):
            Segmenter.load(folder)
        assert Segmenter.load(folder, template="eval_llama2").template == "eval_llama2"

    def test_an_unknown_template_or_dtype(self, folder):
        with pytest.raises(UserError, match="no prompt template"):
            Segmenter.load(folder, template="poetry")
        with pytest.raises(UserError, match="dtype"):
            Segmenter.load(folder, dtype="int3")

    def test_the_tokenizer_of_another_checkpoint(self, folder):
        larger = train_tokenizer(["more words than the model has rows for " + " ".join(map(str, range(400)))], 600)
        save_tokenizer(larger, folder / "tokenizer.json")
        with pytest.raises(UserError, match="another checkpoint"):
            Segmenter.load(folder)


class TestTarget:
    LETTERBOX = Letterbox(40, 20, 64)  # placed on the left half of the frame

    def test_score_is_the_mean_probability_inside_times_that_of_the_token(self):
        logits = np.full((16, 16), -9.0, np.float32)
        logits[4:8, 2:6] = 2.0
        target = make_target(self.LETTERBOX, logits, 0.5, "pond")
        assert target.score == pytest.approx(0.5 / (1 + np.exp(-2)))
        assert target.phrase == "pond"

    def test_what_lies_in_the_padding_counts_for_nothing(self):
        logits = np.full((16, 16), -9.0, np.float32)
        logits[:, 9:] = 50.0
        target = make_target(self.LETTERBOX, logits, 1.0, "x")
        assert (target.area, target.box, target.score) == (0, None, 0.0)

    def test_everything(self):
        target = make_target(self.LETTERBOX, np.full((16, 16), 30.0, np.float32), 1.0, "x")
        assert target.area == 40 * 20
        assert target.box == (0, 0, 20, 40)
        assert target.score == pytest.approx(1)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["The result is ", "."], ["target 1"]),
        (["The result is ", ", ", "."], ["target 1", "target 2"]),
        (["", ""], ["target 1"]),
        (["no mask at all"], []),
        (["Sure, <p>the red roof</p>", " and <p>the pond</p> ", "."], ["the red roof", "the pond"]),
        (["<p>a</p> beside <p>two\n cars</p>", ""], ["two cars"]),
        (["Two ships: a tanker ", " and a ferry ", " at the pier."], ["a tanker", "a ferry"]),
        (["The large building is ", ". It is ", "."], ["The large building", "target 2"]),
        (["<p></p>", ""], ["target 1"]),
    ],
)
def test_phrases(texts, expected):
    assert phrases(texts) == expected


def test_the_limit_of_positions_is_a_multiple_of_the_bucket():
    assert segment.MAX_POSITIONS % segment.BUCKET_STEP == 0
