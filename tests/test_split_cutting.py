"""Cutting: the chunks of LangChain itself, whatever the text, the tokenizer and the lengths."""

import re

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from langchain_text_splitters import Language, RecursiveCharacterTextSplitter
from rs_bpe.bpe import openai
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from stages.split import blocks, cutting, tokens
from stages.split.cutting import Cutter, Product

SAMPLE = """\
Ants dig nests below the ground; some of them farm fungi, and others keep aphids as we keep cows.
The function `open(file, mode='r')` returns a file object, and raises OSError where it cannot.
Die Königin legt täglich über tausend Eier. Les fourmis naïves déjà vues près d'un chêne.
>>> import os, sys; print(os.path.join("a", "b")); [x ** 2 for x in range(10)]
| name | value |  (see https://docs.example.org/library/os.html#os.path)  1234567890
"""


def trained(model, trainer, normalizer=None, pre_tokenizer=None):
    """Counts the tokens of a tokenizer with a few hundred entries, trained here."""
    tokenizer = Tokenizer(model)
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.train_from_iterator(SAMPLE.splitlines() * 5, trainer)
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False))


def byte_bpe():
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, show_progress=False, max_token_length=8
    )
    return trained(
        models.BPE(), trainer, pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False)
    )


def unigram():
    trainer = trainers.UnigramTrainer(
        vocab_size=200, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
    )
    return trained(
        models.Unigram(), trainer, normalizers.NFKC(), pre_tokenizer=pre_tokenizers.Metaspace()
    )


def word_piece():
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=["[UNK]"], show_progress=False
    )
    return trained(
        models.WordPiece(unk_token="[UNK]"),
        trainer,
        normalizers.BertNormalizer(),
        pre_tokenizer=pre_tokenizers.BertPreTokenizer(),
    )


COUNTERS = {
    "cl100k": tokens.Counter(openai.cl100k_base().count, seamed=True),
    "o200k": tokens.Counter(openai.o200k_base().count, seamed=True),
    "byte_bpe": tokens.Counter(byte_bpe()),
    "unigram": tokens.Counter(unigram()),
    "word_piece": tokens.Counter(word_piece()),
}

# What stands at the ends of pieces, where tokenizers join and part in unexpected ways.
ENDS = st.sampled_from(
    [".", "`", "```", ")", "):", "...", "'", "'s", "/", "//", "|", "—", "。", "’", "\u0301", "  "]
)
WORDS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8),
    st.sampled_from([*SAMPLE.split(), "汉字汉字", "😀", "<|endoftext|>", "x" * 90, SAMPLE]),
    ENDS,
)
BLANKS = st.sampled_from(
    [
        " ",
        " ",
        "\n",
        "\n\n",
        "\n\n",
        "\n\n\n\n",
        "\n    ",
        " \n",
        "\t",
        "\r\n",
        "\u2003",
        "\x1c",
        "",
    ]
)
TEXTS = st.lists(st.tuples(WORDS, BLANKS).map("".join), max_size=150).map("".join)
LONGER = st.builds(lambda part, times: part * times, TEXTS, st.integers(1, 8))
SIZES = st.sampled_from([8, 9, 12, 16, 40, 100, 250, 512, 900])
SHARES = st.sampled_from([0, 0.1, 0.5, 0.9])


def plain(text, product, count, separators=None):
    """LangChain's own chunks with this count."""
    splitter = RecursiveCharacterTextSplitter(
        separators=separators,
        is_separator_regex=separators is not None,
        chunk_size=product.chunk_tokens,
        chunk_overlap=product.overlap_tokens,
        length_function=count,
    )
    return [chunk.strip() for chunk in splitter.split_text(text) if chunk.strip()]


def check(text, spans, product, count, theirs):
    """That these are LangChain's chunks; of its chunks above the limit, that ours are not."""
    limit = product.chunk_tokens
    for start, end, num_tokens in spans:
        assert text[start:end] == text[start:end].strip() != ""
        assert num_tokens == count(text[start:end])
        assert num_tokens <= limit or end - start == 1
    held = bytearray(len(text))
    for start, end, _ in spans:
        held[start:end] = b"\1" * (end - start)
    assert all(kept or character.isspace() for character, kept in zip(text, held, strict=True))
    ours = [text[start:end] for start, end, _ in spans]
    if all(count(chunk) <= limit for chunk in theirs):
        assert ours == theirs


def identity(cutter, examples):
    """The property that a cutter makes LangChain's chunks."""

    @settings(
        deadline=None,
        max_examples=examples,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
    )
    @given(LONGER, st.sampled_from(sorted(COUNTERS)), SIZES, SHARES)
    def holds(text, tokenizer, size, share):
        counter = COUNTERS[tokenizer]
        product = Product(chunk_tokens=size, overlap_tokens=int(size * share))
        ruler = tokens.Ruler(text, counter)
        # The other length first: what it leaves in the ruler must not matter.
        list(cutter(ruler, Product(chunk_tokens=30, overlap_tokens=0), cutting.TEXT).spans(0, 0))
        list(Cutter(ruler, Product(chunk_tokens=30, overlap_tokens=3), cutting.TEXT).spans(0, 9))
        spans = list(cutter(ruler, product, cutting.TEXT).spans(0, len(text)))
        check(text, spans, product, counter.count, plain(text, product, counter.count))

    return holds


def test_chunks_are_exactly_those_of_langchain_alone():
    identity(Cutter, 300)()


@pytest.mark.slow
def test_chunks_are_exactly_those_of_langchain_alone_in_many_more_texts():
    identity(Cutter, 5_000)()


class Shorter(Cutter):
    """Joins pieces up to a token less than the limit."""

    def _joined(self, pieces, first, end):
        product = self.product.model_copy(update={"chunk_tokens": self.product.chunk_tokens - 1})
        yield from Cutter(self.ruler, product, self.separators)._joined(pieces, first, end)


class Forgetful(Cutter):
    """Repeats nothing."""

    def _joined(self, pieces, first, end):
        product = self.product.model_copy(update={"overlap_tokens": 0})
        yield from Cutter(self.ruler, product, self.separators)._joined(pieces, first, end)


class Impatient(Cutter):
    """Cuts at lines before it cuts at paragraphs."""

    def _bounds(self, first, last, level):
        return super()._bounds(first, last, max(level, 1))


class Unmended(Cutter):
    """Takes the sum of the pieces' tokens for those of the chunk."""

    def _within_limit(self, pieces, first, last):
        for start, end, _ in super()._within_limit(pieces, first, last):
            yield cutting.Span(start, end, pieces.sums[last] - pieces.sums[first])


@pytest.mark.parametrize("defect", [Shorter, Forgetful, Impatient, Unmended])
def test_a_planted_defect_turns_the_identity_red(defect):
    with pytest.raises(AssertionError):
        identity(defect, 300)()


CODE = """\
class Ant(Insect):
    def dig(self, depth):
        for step in range(depth):
            self.legs.move()

def main():
    if not sys.argv: return 1
\treturn Ant().dig(3)

fn main() { let x = 1; match x { 1 => (), _ => loop {} } }
function f() { const a = 1; if (a) { return; } }
<div><p>text</p><br></div> $x$ \\section{One} \\begin{list}
---
namespace a { class B { public: int c; private: void d(); }; }
"""


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(sorted(Language)),
    st.lists(st.sampled_from(CODE.splitlines(keepends=True)), min_size=1, max_size=40),
    SIZES,
    SHARES,
)
def test_code_is_cut_where_langchain_cuts_the_language(language, lines, size, share):
    text, counter = "".join(lines), COUNTERS["cl100k"]
    product = Product(chunk_tokens=size, overlap_tokens=int(size * share))
    try:
        separators = RecursiveCharacterTextSplitter.get_separators_for_language(language)
    except ValueError:
        assert language not in blocks.SUFFIXES
        return
    cutter = Cutter(tokens.Ruler(text, counter), product, blocks.separators(language))
    theirs = plain(text, product, counter.count, separators)
    check(text, list(cutter.spans(0, len(text))), product, counter.count, theirs)


# --- where tokens add up -------------------------------------------------------------------------


def partings(text):
    return [at for at in range(1, len(text)) if tokens._PARTED.match(text[at - 1 : at + 1])]


@settings(deadline=None, max_examples=300)
@given(LONGER, st.sampled_from(["cl100k", "o200k"]), st.data())
def test_tokens_add_up_on_both_sides_of_a_parting(text, tokenizer, data):
    count, places = COUNTERS[tokenizer].count, partings(text)
    for at in data.draw(st.lists(st.sampled_from(places), max_size=5)) if places else []:
        assert count(text) == count(text[:at]) + count(text[at:])


@pytest.mark.slow
@pytest.mark.parametrize("tokenizer", ["cl100k", "o200k"])
def test_tokens_add_up_on_both_sides_of_a_parting_beside_any_character(tokenizer):
    count = COUNTERS[tokenizer].count
    for code in (*range(0xD800), *range(0xE000, 0x110000)):
        for before, after in ((")", " x"), ("a", ".\n\nB"), ("a.\n", "'s"), (".\n  ", "/")):
            text = before + chr(code) + after
            for at in partings(text):
                assert count(text) == count(text[:at]) + count(text[at:])


# --- above the limit -----------------------------------------------------------------------------


def test_joined_pieces_that_grow_above_the_limit_are_cut_again_between_pieces():
    # LangChain adds up the lengths of pieces; this counter charges for every blank in between.
    def count(text):
        return len(text) + text.count(" ") * 3

    text = "ab cd ef gh ij kl mn op"
    product = Product(chunk_tokens=10, overlap_tokens=0)
    spans = list(
        Cutter(tokens.Ruler(text, tokens.Counter(count)), product, cutting.TEXT).spans(0, 23)
    )
    assert " ".join(text[start:end] for start, end, _ in spans) == text
    assert all(num_tokens <= 10 for _, _, num_tokens in spans)


def test_a_piece_that_no_separator_cuts_is_cut_between_characters_even_if_it_was_to_stay_whole():
    text = "see " + "x1" * 40 + " there"
    product = Product(chunk_tokens=8, overlap_tokens=0)
    kept = Cutter(
        tokens.Ruler(text, COUNTERS["cl100k"]), product, cutting.TEXT, lambda first, last: [(4, 84)]
    )
    spans = list(kept.spans(0, len(text)))
    assert max(num_tokens for _, _, num_tokens in spans) <= 8
    assert "".join(text[start:end] for start, end, _ in spans) == re.sub(" ", "", text)


def test_pieces_are_counted_once_for_chunks_of_two_lengths():
    counted = []

    def count(text):
        counted.append(text)
        return len(text.split())

    text = "\n\n".join(f"Paragraph {n} has these words, and not many others." for n in range(30))
    ruler = tokens.Ruler(text, tokens.Counter(count, seamed=True))
    for size in (100, 30):
        product = Product(chunk_tokens=size, overlap_tokens=0)
        assert list(Cutter(ruler, product, cutting.TEXT).spans(0, len(text)))
    assert sum(map(len, counted)) < 1.2 * len(text)
