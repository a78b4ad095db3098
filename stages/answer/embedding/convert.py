"""A sentence-transformers model or a cross-encoder to an OpenVINO graph with its tokenizer.

Run in the model environment by its path: `python -P convert.py TASK FOLDER OUT`, TASK embedding or
reranking. OUT gets model.xml and .bin, tokenizer.json and, last, about.json.
"""

import json
import shutil
import sys
from pathlib import Path

# What transformers finds it imports, needed or not; and OpenVINO would tell its makers about us.
UNUSED = ("deepspeed", "openvino_telemetry", "torchao")
sys.modules.update(dict.fromkeys(UNUSED))

import openvino  # noqa: E402
import torch  # noqa: E402

torch.set_grad_enabled(False)
EXAMPLE = torch.ones(2, 8, dtype=torch.long)


class Embedding(torch.nn.Module):
    """Token ids and their mask, (batch, tokens), to unit vectors, (batch, dimension)."""

    def __init__(self, folder: str) -> None:
        from sentence_transformers import SentenceTransformer

        super().__init__()
        self.model = SentenceTransformer(
            folder,
            device="cpu",
            local_files_only=True,
            model_kwargs={"use_safetensors": True, "dtype": torch.float32},
        )
        self.max_tokens = int(self.model.max_seq_length)
        self.example = {"input_ids": EXAMPLE, "attention_mask": EXAMPLE}

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        features = {"input_ids": input_ids, "attention_mask": attention_mask}
        return self.model(features)["sentence_embedding"]


class Reranking(torch.nn.Module):
    """Token ids of a question and a text, (batch, tokens), to their relevance, (batch, 1)."""

    def __init__(self, folder: str) -> None:
        from transformers import AutoModelForSequenceClassification

        super().__init__()
        self.model = AutoModelForSequenceClassification.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
        )
        if self.model.config.num_labels != 1:
            raise SystemExit(
                f"expected a cross-encoder with one label, found {self.model.config.num_labels}"
            )
        self.max_tokens = int(self.model.config.max_position_embeddings)
        self.example = {
            "input_ids": EXAMPLE,
            "attention_mask": EXAMPLE,
            "token_type_ids": torch.zeros_like(EXAMPLE),
        }

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> torch.Tensor:
        if getattr(self.model.config, "type_vocab_size", 1) > 1:
            types = {"token_type_ids": token_type_ids}
        else:
            types = {}  # RoBERTa's kin has one type: the input is not read
            input_ids = input_ids + 0 * token_type_ids
        return self.model(input_ids=input_ids, attention_mask=attention_mask, **types).logits


def main(task: str, folder: str, out: Path) -> None:
    model = {"embedding": Embedding, "reranking": Reranking}[task](folder).eval()
    graph = openvino.convert_model(model, example_input=model.example)
    openvino.save_model(graph, out / "model.xml", compress_to_fp16=False)
    shutil.copyfile(Path(folder) / "tokenizer.json", out / "tokenizer.json")
    width = graph.outputs[0].get_partial_shape()[1].get_length()
    about = {"task": task, "width": width, "max_tokens": model.max_tokens, "folder": out.name}
    beside = out / ".about.json"
    beside.write_text(json.dumps(about))
    beside.replace(out / "about.json")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
