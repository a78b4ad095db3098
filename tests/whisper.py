"""A Whisper model of random weights in CTranslate2's format: it hears times, and no words."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

HIDDEN, HEADS, MELS = 16, 2, 80
SPECIAL = (
    *("endoftext", "startoftranscript", "en", "translate", "transcribe", "startoflm"),
    *("startofprev", "nospeech", "notimestamps"),
)


def make(folder: Path, seed: int = 5) -> Path:
    """Write the model; every seed gives another one."""
    from ctranslate2 import specs

    folder.mkdir(parents=True)
    tokens = _tokens()
    draw = np.random.default_rng(seed)
    spec = specs.WhisperSpec(1, HEADS, 1, HEADS)

    def matrix(*shape: int) -> np.ndarray[Any, Any]:
        return (draw.standard_normal(shape) * 0.3).astype(np.float32)

    def linear(at: Any, rows: int, columns: int) -> None:
        at.weight, at.bias = matrix(rows, columns), matrix(rows)

    def norm(at: Any) -> None:
        at.gamma, at.beta = np.ones(HIDDEN, np.float32), np.zeros(HIDDEN, np.float32)

    for place, width in ((spec.encoder.conv1, MELS), (spec.encoder.conv2, HIDDEN)):
        place.weight, place.bias = matrix(HIDDEN, width, 3), matrix(HIDDEN)
    spec.encoder.position_encodings.encodings = matrix(1500, HIDDEN)
    spec.decoder.position_encodings.encodings = matrix(448, HIDDEN)
    spec.decoder.embeddings.weight = matrix(len(tokens), HIDDEN)
    linear(spec.decoder.projection, len(tokens), HIDDEN)
    unsaid = [n for n, token in enumerate(tokens) if len(token) == 1 and not "a" <= token <= "z"]
    bias = spec.decoder.projection.bias
    bias[unsaid] -= 20  # it babbles in small letters
    bias[[n for n, token in enumerate(tokens) if token[-3:-2].isdigit()]] -= 6.2
    for side in (spec.encoder, spec.decoder):
        norm(side.layer_norm)
        for layer in side.layer:
            parts = [(layer.self_attention, (3, 1))]
            if side is spec.decoder:
                parts.append((layer.attention, (1, 2, 1)))
            for part, sizes in parts:
                norm(part.layer_norm)
                for at, size in zip(part.linear, sizes, strict=True):
                    linear(at, size * HIDDEN, HIDDEN)
            norm(layer.ffn.layer_norm)
            linear(layer.ffn.linear_0, 2 * HIDDEN, HIDDEN)
            linear(layer.ffn.linear_1, HIDDEN, 2 * HIDDEN)
    spec.register_vocabulary(tokens)
    spec.config.suppress_ids = spec.config.suppress_ids_begin = spec.config.lang_ids = []
    spec.config.alignment_heads = [(0, 0)]
    spec.validate()
    spec.save(str(folder))
    _tokenizer(tokens).save(str(folder / "tokenizer.json"))
    about = {"feature_size": MELS, "sampling_rate": 16000, "hop_length": 160, "n_fft": 400}
    (folder / "preprocessor_config.json").write_text(json.dumps(about))
    return folder


def _tokens() -> list[str]:
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    special = [f"<|{name}|>" for name in SPECIAL]
    return [*letters, *special, *(f"<|{n * 0.02:.2f}|>" for n in range(1501))]


def _tokenizer(tokens: list[str]) -> tokenizers.Tokenizer:
    model = tokenizers.models.BPE({token: n for n, token in enumerate(tokens)}, [])
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens([token for token in tokens if token.startswith("<|")])
    return made
