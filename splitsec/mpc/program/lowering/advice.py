"""What takes the place of layers and functions that have no encrypted form: the one home of this advice.

Each entry is what a refusal says after the layer's name; the nearest cut behind the layer is said after it.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from splitsec.cut.points import CutGraph

LOOKUPS = ("Embedding", "EmbeddingBag")

_GROW = "nn.Upsample(scale_factor=2, mode='nearest') and a convolution, or a convolution and nn.PixelShuffle"
_RECURRENT = "it runs a step at a time; keep it in the front, or use nn.Conv1d or attention"
_COMPARE = "compare with >, >=, < or <=, and choose with torch.where"
_INDEX = "an index is no real number; ask for reveal='label' if the largest result is wanted"
_ROUND = "steps have none; leave quantisation out in eval mode, or use nn.Hardtanh"
_WHOLE = ("floordiv", "floor_divide", "mod", "remainder", "fmod", "frac")
_WAVE = "no broken line for it; make constants of positions in a buffer, or use nn.Tanh"
_DECODER = "write it with nn.MultiheadAttention, nn.LayerNorm and nn.Linear, or use nn.TransformerEncoderLayer"
_TRANSFORM = "it prepares inputs; keep it in the front"
_DOTS = "use torch.matmul of permuted and reshaped values, or * and sum"

# By the name of the class, function or method.
ADVICE: Mapping[str, str] = {
    **dict.fromkeys(
        LOOKUPS, "looking up a row would show the server which one; keep it in the front and move the cut behind it"
    ),
    **dict.fromkeys(("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"), _RECURRENT),
    **dict.fromkeys(("MaxUnpool1d", "MaxUnpool2d", "Fold", "fold"), f"use {_GROW}"),
    **dict.fromkeys(
        ("LPPool1d", "LPPool2d", "FractionalMaxPool2d", "lp_pool1d", "lp_pool2d"), "use nn.AvgPool2d or nn.MaxPool2d"
    ),
    "SyncBatchNorm": "use nn.BatchNorm2d, which holds the same values",
    **dict.fromkeys(
        ("LocalResponseNorm", "CrossMapLRN2d", "local_response_norm"), "use nn.BatchNorm2d, which is folded"
    ),
    **dict.fromkeys(("var_mean", "std_mean"), "take torch.mean and torch.var apart"),
    **dict.fromkeys(("cosine_similarity", "CosineSimilarity", "cdist"), "use the product of F.normalize of both"),
    "logsumexp": "subtract torch.log_softmax from the values",
    **dict.fromkeys(("eq", "ne", "isclose", "masked_select"), _COMPARE),
    **dict.fromkeys(("heaviside", "sgn", "logical_xor", "xor", "nan_to_num"), _COMPARE),
    **dict.fromkeys(("argmax", "argmin", "argsort", "nonzero"), _INDEX),
    **dict.fromkeys(("topk", "sort", "kthvalue", "median", "mode", "unique"), "an order has none; use nn.MaxPool1d"),
    **dict.fromkeys(("round", "floor", "ceil", "trunc", "fix", "FakeQuantize", *_WHOLE), _ROUND),
    **dict.fromkeys(("tan", "sinc", "atan", "arctan", "atan2", "asin", "acos"), _WAVE),
    **dict.fromkeys(("Softsign", "softsign", "sinh", "cosh"), "use nn.Tanh or nn.Hardtanh"),
    **dict.fromkeys(("RReLU", "rrelu"), "use nn.LeakyReLU with the mean of its two slopes, which it is in eval mode"),
    **dict.fromkeys(("Softmax2d", "softmin", "Softmin"), "use nn.Softmax(dim), of -x for softmin"),
    **dict.fromkeys(("GumbelSoftmax", "gumbel_softmax"), "use nn.Softmax"),
    "logit": "use torch.log(x / (1 - x))",
    **dict.fromkeys(("lerp", "addcdiv"), "use +, * and /"),
    **dict.fromkeys(("grid_sample", "affine_grid"), "use nn.Upsample with mode='nearest'"),
    **dict.fromkeys(("Bilinear", "bilinear"), "use nn.Linear of torch.cat of both, or the product of two nn.Linear"),
    **dict.fromkeys(("tensordot", "outer", "kron", "inner"), _DOTS),
    **dict.fromkeys(("addmm", "baddbmm", "addbmm", "addcmul", "addmv", "mv", "dot", "mm"), "use torch.matmul, + and *"),
    **dict.fromkeys(("TransformerDecoderLayer", "TransformerDecoder", "Transformer"), _DECODER),
    "TransformerEncoder": "call it without masks, or call its layers one after the other",
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "prod"), "use nn.Linear with a constant matrix, or * of the parts"),
    **dict.fromkeys(
        ("bernoulli_", "bernoulli", "randn_like", "rand_like", "normal_", "uniform_"), "leave it out in eval mode"
    ),
    **dict.fromkeys(("dropout1d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"), "use nn.Dropout"),
    **dict.fromkeys(("gather", "scatter", "index_add", "take_along_dim"), "take parts by slices and torch.cat"),
    **dict.fromkeys(("checkpoint", "checkpoint_sequential"), "leave checkpointing out in eval mode"),
    **dict.fromkeys(("item", "tolist", "numpy"), "no party may read a value on shares; leave it out"),
    **dict.fromkeys(("long", "int", "bool", "short"), "shares stand for real numbers; keep whole numbers in the front"),
}
# Hooks that compute a layer's weight before each call, and what leaves the layer with that weight.
UNDONE = {
    "WeightNorm": "torch.nn.utils.remove_weight_norm(layer)",
    "SpectralNorm": "torch.nn.utils.remove_spectral_norm(layer)",
}


def refusal(name: str, described: str, tail: fx.GraphModule, node: fx.Node | None) -> str:
    """Why a layer or function has no encrypted form, and what to do.

    Args:
        described: its class, function (`gelu`) or method (`Tensor.exp`).
        node: its node in the tail, behind which a cut may lie.
    """
    advice = ADVICE.get(described.removeprefix("Tensor."))
    package = getattr(type(_layer(tail, node)), "__module__", "")
    if advice is None and package.startswith("torchvision.transforms."):
        advice = _TRANSFORM
    function = getattr(node.target, "function", None) if node is not None else None
    if function is not None:
        advice = (
            "it is an autograd.Function of your own; compute what its forward does with torch functions in eval mode, "
            "or keep it in the front"
        )
    behind = nearest_cut(tail, node)
    what = f"layer '{name}' ({described}) has no encrypted form"
    if advice is None:
        return f"{what}; {behind or 'write it with layers that have one: docs/reference/models.md lists them'}"
    return f"{what}: {advice}{f'; {behind}' if behind else ''}"


def _layer(tail: fx.GraphModule, node: fx.Node | None) -> object:
    return tail.get_submodule(str(node.target)) if node is not None and node.op == "call_module" else None


def nearest_cut(tail: fx.GraphModule, node: fx.Node | None) -> str:
    """Return the first cut behind a node of a tail, in words; "" if there is none."""
    if node is None or node.graph is not tail.graph:
        return ""
    graph = CutGraph(tail)
    for point in graph.points:
        if graph.order[point.node] >= graph.order[node] and node in graph.front(point.node):
            return f"the nearest cut behind it is '{point.name}'"
    return ""
