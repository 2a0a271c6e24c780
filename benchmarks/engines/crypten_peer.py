"""Stock CrypTen as it comes, to compare with: two parties and its trusted third party over gloo on loopback.

Run as `python -m benchmarks.engines.crypten_peer RANK PORT MODEL BATCH`; answers each line on standard input with
one run's milliseconds. Nothing of splitsec's engine is loaded here, in particular not the module that replaces
CrypTen's communicator and provider.
"""

from __future__ import annotations

import json
import os
import sys
import time
import types
from typing import Any

import torch
from torch import nn

from splitsec.models.literature import find_model

WORLD = 2


def _stock_crypten(rank: int, port: int) -> Any:
    stand_in = types.ModuleType("torch.onnx.symbolic_registry")
    stand_in.register_op = lambda *_args, **_kwargs: None  # type: ignore[attr-defined]
    sys.modules["torch.onnx.symbolic_registry"] = stand_in
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(WORLD),
        "RENDEZVOUS": f"tcp://127.0.0.1:{port}",
        "DISTRIBUTED_BACKEND": "gloo",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    import crypten  # the stock package, in a process of its own

    crypten.config.cfg.mpc.provider = "TTP"
    return crypten


def _convert(crypten: Any, model: nn.Module) -> Any:
    """Return the network from CrypTen's own modules, with the same weights; no ONNX."""
    layers: list[Any] = []
    for layer in model.children():
        match layer:
            case nn.Linear():
                made = crypten.nn.Linear(layer.in_features, layer.out_features)
            case nn.Conv2d():
                made = crypten.nn.Conv2d(
                    layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding
                )
            case nn.ReLU():
                made = crypten.nn.ReLU()
            case nn.MaxPool2d():
                made = crypten.nn.MaxPool2d(layer.kernel_size, layer.stride)
            case nn.AvgPool2d():
                made = crypten.nn.AvgPool2d(layer.kernel_size, layer.stride)
            case nn.Flatten():
                made = crypten.nn.Flatten(axis=1)
            case _:
                raise SystemExit(f"the stock CrypTen benchmark has no {type(layer).__name__}")
        for name, parameter in layer.named_parameters():
            made.set_parameter(name, parameter.detach())
        layers.append(made)
    return crypten.nn.Sequential(*layers)


def main() -> None:
    """One process: rank 0 has the model, rank 1 the input, rank 2 is the trusted third party."""
    rank, port, batch = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[4])
    crypten = _stock_crypten(rank, port)
    if rank == WORLD:
        crypten.mpc.provider.TTPServer()
        return
    crypten.init()
    known = find_model(sys.argv[3], None)
    plain = known.make()
    model = _convert(crypten, plain).encrypt(src=0)
    torch.manual_seed(1)
    x = torch.randn(batch, *known.input_shape)
    for line in sys.stdin:
        if not line.strip():
            break
        crypten.communicator.get().barrier()
        began = time.perf_counter()
        secret = crypten.cryptensor(x, src=1)
        with crypten.no_grad():
            opened = model(secret).get_plain_text()
        spent = (time.perf_counter() - began) * 1e3
        with torch.no_grad():
            error = (opened - plain(x)).abs().max().item()
            same = (opened.argmax(1) == plain(x).argmax(1)).float().mean().item()
        print(json.dumps({"ms": spent, "error": error, "agreement": same}), flush=True)


if __name__ == "__main__":
    main()
