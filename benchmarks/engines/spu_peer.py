"""SPU (SecretFlow) on the same network, to compare with: two parties, protocol semi2k, input and weights secret.

Runs in an environment of its own (Python 3.11, `pip install spu==0.10.0.dev20251211`), where splitsec is not: a script
that reads what it needs from a directory. `python spu_peer.py RANK PORT DIRECTORY` answers each line on standard input
with one run's milliseconds.

As favourable to SPU as we know: the weights' masks are opened once (`make_cached_var`), batch norm is folded, ReLU
comes after pooling, pooling is a maximum over a reshaped image (faster here than windows or slices), input and weights
are shared and the program compiled before the timed part, and the runtime is kept between runs.
"""


# mypy: ignore-errors

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def _pooled(value, step, join):
    if any(step["padding"]):
        raise SystemExit("the SPU benchmark pools without padding")
    (high, wide), (down, right) = step["kernel"], step["stride"]
    rows, columns = step["shape"][-2:]
    parts = [
        value[:, i : i + (rows - 1) * down + 1 : down, j : j + (columns - 1) * right + 1 : right]
        for i in range(high)
        for j in range(wide)
    ]
    while len(parts) > 1:
        parts = [join(*parts[i : i + 2]) if i + 1 < len(parts) else parts[i] for i in range(0, len(parts), 2)]
    return parts[0]


def _fits(value, step):
    sizes = zip(value.shape[1:3], step["kernel"], step["stride"], strict=True)
    return all(kernel == stride and size % kernel == 0 for size, kernel, stride in sizes)


def _linear(_jax, _jnp, _step, weights, x):
    return x @ weights["w"] + weights["b"]


def _conv2d(jax, _jnp, step, weights, x):
    product = jax.lax.conv_general_dilated(
        x,
        weights["w"],
        step["stride"],
        [(size, size) for size in step["padding"]],
        rhs_dilation=step["dilation"],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=step["groups"],
    )
    return product + weights["b"]


def _relu(_jax, jnp, _step, _weights, x):
    return jnp.maximum(x, 0)


def _max_pool2d(_jax, jnp, step, _weights, x):
    if _fits(x, step):
        count, rows, columns, channels = x.shape
        high, wide = step["kernel"]
        largest = jnp.max(x.reshape(count, rows // high, high, columns // wide, wide, channels), axis=(2, 4))
    else:
        largest = _pooled(x, step, jnp.maximum)
    return jnp.maximum(largest, 0) if step["zero"] else largest


def _avg_pool2d(_jax, jnp, step, _weights, x):
    return _pooled(x, step, jnp.add) * (1.0 / (step["kernel"][0] * step["kernel"][1]))


def _add(_jax, _jnp, _step, _weights, x, other):
    return x + other


def _reshape(_jax, jnp, step, _weights, x):
    first = jnp.transpose(x, (0, 3, 1, 2)) if x.ndim == 4 else x
    # Fused layers leave a step that changes nothing.
    return x if first.shape == tuple(step["shape"]) else first.reshape(step["shape"])


OPERATIONS = {
    "linear": _linear,
    "conv2d": _conv2d,
    "relu": _relu,
    "max_pool2d": _max_pool2d,
    "avg_pool2d": _avg_pool2d,
    "add": _add,
    "reshape": _reshape,
}


def network(steps, jax, jnp):
    """Return the steps of a compiled tail as a JAX function of its weights and its input.

    Images are kept channels last.
    """

    def run(weights, x):
        values = [x]
        for number, step in enumerate(steps, 1):
            if step["op"] not in OPERATIONS:
                raise SystemExit(f"the SPU benchmark has no {step['op']}")
            inputs = [values[index] for index in step["inputs"]]
            values.append(OPERATIONS[step["op"]](jax, jnp, step, weights.get(str(number)), *inputs))
        return values[-1]

    return run


def read_inputs(directory):
    """Return the steps, the weights by step number, the input and the expected output, channels last."""
    import numpy as np

    steps = json.loads((directory / "steps.json").read_text())
    arrays = dict(np.load(directory / "arrays.npz"))
    x, expected = arrays.pop("x"), arrays.pop("expected")
    x = np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if x.ndim == 4 else x
    weights = {}
    for name, array in arrays.items():
        number, part = name.split("_")
        axes = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}[array.ndim]
        weights.setdefault(number, {})[part] = np.ascontiguousarray(array.transpose(axes))
    return steps, weights, x, expected


def compiled(function, arguments, names, prefix):
    """Return a JAX function as SPU's executable, all of whose inputs are secret."""
    from spu import libspu
    from spu.utils import frontend

    executable, _ = frontend.compile(
        frontend.Kind.JAX,
        function,
        arguments,
        {},
        names,
        [libspu.Visibility.VIS_SECRET] * len(names),
        lambda flat: [f"{prefix}{index}" for index in range(len(flat))],
    )
    return executable


def own_shares(rank, directory, leaves, config):
    """Return this party's share of every leaf; rank 0 makes all and leaves rank 1's in the directory."""
    import numpy as np
    import spu
    from spu import libspu

    shares_file = directory / "shares.npz"
    if rank == 0:
        io = spu.Io(2, config)
        both = [io.make_shares(np.asarray(leaf), libspu.Visibility.VIS_SECRET) for leaf in leaves]
        kept = {}
        for index, (_, other) in enumerate(both):
            kept[f"{index}_meta"] = np.frombuffer(other.meta, np.uint8)
            for chunk, data in enumerate(other.share_chunks):
                kept[f"{index}_chunk{chunk}"] = np.frombuffer(data, np.uint8)
        np.savez(directory / "shares.partial.npz", **kept)
        (directory / "shares.partial.npz").rename(shares_file)
        return [pair[0] for pair in both]
    while not shares_file.exists():
        time.sleep(0.05)
    kept, mine = np.load(shares_file), []
    for index in range(len(leaves)):
        share = libspu.Share()
        share.meta = kept[f"{index}_meta"].tobytes()
        chunks = sum(name.startswith(f"{index}_chunk") for name in kept.files)
        share.share_chunks = [kept[f"{index}_chunk{chunk}"].tobytes() for chunk in range(chunks)]
        mine.append(share)
    return mine


def judged(share, directory, config, expected):
    """Return how far rank 0's result, put together with rank 1's share, is from the expected one, and its agreement."""
    import numpy as np
    import spu
    from spu import libspu

    while not (directory / "out.chunk").exists():
        time.sleep(0.001)
    time.sleep(0.02)
    other = libspu.Share()
    other.meta = (directory / "out.meta").read_bytes()
    other.share_chunks = [(directory / "out.chunk").read_bytes()]
    (directory / "out.chunk").unlink()
    opened = np.asarray(spu.Io(2, config).reconstruct([share, other]))
    opened = opened.transpose(0, 3, 1, 2) if opened.ndim == 4 else opened
    opened = opened.reshape(expected.shape)
    same = opened.reshape(len(opened), -1).argmax(1) == expected.reshape(len(expected), -1).argmax(1)
    return {"error": float(abs(opened - expected).max()), "agreement": float(same.mean())}


def connected(rank, port, config):
    """Return SPU's runtime of this party, connected to the other's."""
    import spu
    from spu import libspu

    parties = libspu.link.Desc()
    parties.recv_timeout_ms = 600_000
    for party in range(2):
        parties.add_party(f"id_{party}", f"127.0.0.1:{port + party}")
    return spu.Runtime(libspu.link.create_brpc(parties, rank), config)


def main() -> None:
    """Answer each line on standard input with one run's milliseconds."""
    import jax
    import jax.numpy as jnp
    from spu import libspu
    from spu.experimental import make_cached_var

    rank, port, directory = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    steps, weights, x, expected = read_inputs(directory)
    config = libspu.RuntimeConfig(protocol=libspu.ProtocolKind.SEMI2K, field=libspu.FieldType.FM64)
    config.fxp_fraction_bits = 18
    leaves, _ = jax.tree_util.tree_flatten((weights, x))

    def cache(values):
        return jax.tree_util.tree_map(lambda w: make_cached_var(w) if w.ndim > 1 else w, values)

    raw = [f"raw{index}" for index in range(len(leaves) - 1)]
    caching = compiled(cache, (weights,), raw, "w") if raw else None
    cached = [f"w{index}" for index in range(len(raw))]
    program = compiled(network(steps, jax, jnp), (weights, x), [*cached, "x"], "out")
    mine = own_shares(rank, directory, leaves, config)
    runtime = connected(rank, port, config)
    for name, share in zip([*raw, "x"], mine, strict=True):
        runtime.set_var(name, share)
    if caching is not None:
        runtime.run(caching)
    for line in sys.stdin:
        if not line.strip():
            break
        began = time.perf_counter()
        runtime.run(program)
        spent = (time.perf_counter() - began) * 1e3
        share = runtime.get_var("out0")
        answer = {"error": 0.0, "agreement": 1.0}
        if rank == 1:
            (directory / "out.meta").write_bytes(share.meta)
            (directory / "out.chunk").write_bytes(b"".join(share.share_chunks))
        else:
            answer = judged(share, directory, config, expected)
        print(json.dumps({"ms": spent, **answer}), flush=True)


if __name__ == "__main__":
    main()
