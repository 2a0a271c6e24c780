"""Differential privacy by record: a step from per-sample gradients, each clipped, with noise in their sum.

DP-SGD: M. Abadi et al., "Deep learning with differential privacy", CCS 2016, algorithm 1. A model that is cut has its
gradient in two places. Where both sides tell each other the norm of every record's part, the whole is clipped as that
of an uncut model would be. Else each side clips to its part of `clip`, so that both together are within it: one
Gaussian mechanism on the joined vector all the same (H. B. McMahan et al., "A general approach to adding differential
privacy to iterative training procedures", 2018, section 2). Noise of `noise * clip` is added to every value.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from opacus.validators import ModuleValidator
from torch import fx, nn

from splitsec.errors import ConfigError, first_line
from splitsec.mpc.prg import Stream, fresh_seed
from splitsec.privacy.noise import with_noise
from splitsec.settings.privacy import GradientNoise

# A front's inputs need no gradient, and the hooks do not mind.
warnings.filterwarnings("ignore", message="Full backward hook is firing")
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class _SecureOptimizer(DPOptimizer):  # type: ignore[misc]  # Opacus has no types
    """Opacus's optimizer with discrete noise from the AES-CTR generator."""

    def __init__(self, optimizer: torch.optim.Optimizer, rules: GradientNoise) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=rules.std / rules.clip,
            max_grad_norm=rules.clip,
            expected_batch_size=1,
            loss_reduction="mean",
        )
        self.factors: torch.Tensor | None = None
        self._std = rules.std
        self._clip = rules.clip
        self._stream = Stream(fresh_seed())

    def clip_and_accumulate(self) -> None:
        if self.factors is None:
            super().clip_and_accumulate()
            return
        for parameter in self.params:
            parameter.summed_grad = torch.einsum("i,i...->...", self.factors.to(parameter), parameter.grad_sample)
        self.factors = None

    def add_noise(self) -> None:
        # Of all together, since the clip is that of all.
        summed = torch.cat([parameter.summed_grad.detach().flatten() for parameter in self.params])
        noisy = with_noise(summed, std=self._std, moved=self._clip, stream=self._stream)
        for parameter, part in zip(
            self.params, noisy.split([parameter.numel() for parameter in self.params]), strict=True
        ):
            parameter.grad = part.to(parameter).view_as(parameter)


class PrivateStep:
    """Makes an optimizer's steps differentially private; the segments may be called as before.

    After a backward pass of the *sum* of the samples' losses, `step` clips, sums, adds noise and steps.

    Args:
        segments: of one party, clipped together.
        optimizer: over what they train.
    """

    def __init__(self, segments: Sequence[nn.Module], optimizer: torch.optim.Optimizer, rules: GradientNoise) -> None:
        for segment in segments:
            check_private(segment)
            for module in segment.modules():
                # A layer that works in place would change what the layer before it remembers for the gradient.
                if getattr(module, "inplace", False):
                    module.inplace = False  # type: ignore[assignment]
            if isinstance(segment, fx.GraphModule):
                _not_in_place(segment)
        self._hooked = [_hooked(segment) for segment in segments if any(True for _ in _trained(segment))]
        self._optimizer = _SecureOptimizer(optimizer, rules)
        self._clip = rules.clip
        self._probed: set[int] = set()

    def zero(self) -> None:
        """Forget the gradients of the step before, and a forward pass whose gradient never came."""
        self._optimizer.zero_grad(set_to_none=True)
        for hooked in self._hooked:
            _forget(hooked)

    def probe(self, segment: nn.Module, batch: torch.Tensor) -> None:
        """Check, at the first batch with rows, that a segment treats each row by itself.

        And that the gradients of single records are what they should be.

        Raises:
            ConfigError: what comes of a row depends on another row, or on what the segment remembers of a batch; or a
                record's gradient is not that which the clip is for.
        """
        if id(segment) not in self._probed and len(batch):
            self._probed.add(id(segment))
            check_apart(segment, batch)
            # Another segment's pass may be on its way.
            _forget(segment)
            try:
                check_gradients(segment, batch)
            finally:
                _forget(segment)
                for parameter in segment.parameters():
                    parameter.grad = parameter.grad_sample = None  # type: ignore[attr-defined]  # Opacus puts it there

    def _checked_norms(self, rows: int) -> torch.Tensor:
        """Return the L2 norms of the rows' gradients at this side, where there is one gradient a record.

        What is not a number does not count.
        """
        # A batch of none has one row that stands in for it.
        wrong = [len(gradients) for gradients in self._optimizer.grad_samples if len(gradients) != max(1, rows)]
        if wrong:
            raise ConfigError(
                f"a layer sees {wrong[0]} rows for a batch of {rows}: it folds another dimension into the batch's, so "
                "that no record's gradient can be told; keep the batch dimension first through all layers"
            )
        parts = [gradients.flatten(1).norm(dim=1) for gradients in self._optimizer.grad_samples]
        norms: torch.Tensor = torch.stack(parts).norm(dim=0)
        broken = ~torch.isfinite(norms)
        if broken.any():
            for parameter in self._optimizer.params:
                parameter.grad_sample[broken] = 0
        return norms.masked_fill(broken, 0.0)

    def norms(self, rows: int) -> torch.Tensor:
        """L2 norms of the first rows' gradients at this side, float32 (rows,)."""
        return self._checked_norms(rows)[:rows].float()

    def step(self, expected: float, squares: torch.Tensor | None = None, *, rows: int = 0) -> None:
        """Step by the noisy sum of clipped gradients divided by the expected number of records.

        Args:
            rows: of the batch, where this side clips alone.
            squares: of the norms of whole gradients, both sides together, float32 (rows,): infinite for a row that is
                not to count. None clips this side alone.
        """
        if squares is None:
            self._checked_norms(rows)
        self._clip_jointly(squares)
        self._optimizer.expected_batch_size = expected
        self._optimizer.step()
        self.zero()

    def _clip_jointly(self, squares: torch.Tensor | None) -> None:
        if squares is None:
            return
        # Rows beyond are those that stand in for a batch of none.
        rows = len(self._optimizer.grad_samples[0])
        factors = torch.zeros(rows, dtype=squares.dtype)
        factors[: len(squares)] = (self._clip / (squares.sqrt() + 1e-6)).clamp(max=1.0)
        self._optimizer.factors = factors

    def take_sum(self, squares: torch.Tensor | None = None) -> list[torch.Tensor]:
        """Return the sum of clipped gradients, without noise or a step, in the order of the optimizer's parameters."""
        self._clip_jointly(squares)
        self._optimizer.clip_and_accumulate()
        sums = [parameter.summed_grad.detach().view_as(parameter).double() for parameter in self._optimizer.params]
        self.zero()
        return sums

    def close(self) -> None:
        """Take everything out of the segments that per-sample gradients needed."""
        for module in self._hooked:
            module.to_standard_module()


def _forget(segment: nn.Module) -> None:
    for module in segment.modules():
        if hasattr(module, "activations"):
            module.activations.clear()  # type: ignore[operator,union-attr]
    for parameter in segment.parameters():
        # Opacus counts passes that are on their way, and waits for the gradients of all.
        parameter._forward_counter = 0  # type: ignore[attr-defined]
        if hasattr(parameter, "_current_grad_sample"):
            del parameter._current_grad_sample


def _trained(segment: nn.Module) -> Any:
    return (parameter for parameter in segment.parameters() if parameter.requires_grad)


def _hooked(segment: nn.Module) -> GradSampleModule:
    try:
        return GradSampleModule(segment, loss_reduction="sum")
    except (NotImplementedError, ValueError) as error:
        raise ConfigError(f"Opacus finds no gradient of a single record in this segment: {first_line(error)}") from None


def check_private(model: nn.Module) -> None:
    """Raise `ConfigError` for what cannot be trained by record, naming it and what to put in its place.

    That is a layer that mixes the rows of a batch, or a weight that is used outside of the layer that has it.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BATCH_NORMS):
            raise ConfigError(
                f"the batch norm '{name}' makes each row depend on the others of its batch, so that no record's "
                "part can be clipped: replace batch norms by group norms with splitsec.privacy.dp_sgd.with_group_norm("
                "model), or write MODEL as a function that does"
            )
    for node in (
        [node for node in model.graph.nodes if node.op == "call_function"] if isinstance(model, fx.GraphModule) else []
    ):
        if node.target in (nn.functional.batch_norm, torch.batch_norm):
            raise ConfigError(
                f"the batch norm '{node.name}' makes each row depend on the others of its batch, so that no record's "
                "part can be clipped: use nn.functional.group_norm in its place"
            )
    if isinstance(model, fx.GraphModule):
        _check_uses(model)
    problems = ModuleValidator.validate(model.train())
    if problems:
        raise ConfigError(f"a segment cannot be trained privately: {first_line(problems[0])}")


def _check_uses(segment: fx.GraphModule) -> None:
    """Raise `ConfigError` for a weight that is used elsewhere than in its layer.

    Gradients of single records are computed layer by layer, and what the weight does elsewhere would be left out of
    the norm that is clipped.
    """
    named = dict(segment.named_parameters(remove_duplicate=False))
    of_layers = {id(parameter): name for name, parameter in named.items() if "." in name}
    for node in segment.graph.nodes:
        if node.op != "get_attr":
            continue
        used = named.get(str(node.target))
        if used is None or not used.requires_grad or id(used) not in of_layers:
            continue
        raise ConfigError(
            f"the weight '{of_layers[id(used)]}' is used outside of its layer, so that no record's whole gradient can "
            "be told: call the layer itself, give the weight to the model itself, or freeze it (requires_grad_(False))"
        )


def check_gradients(segment: nn.Module, batch: torch.Tensor) -> None:
    """Compare the gradient of one record, as hooks give it, with that of a loss which depends on no other record.

    Args:
        segment: with Opacus's hooks.
        batch: at least one row.

    Raises:
        ConfigError: they differ, such as for a weight that is used more than once; names it.
    """
    pair = torch.cat([batch[:1], batch[:1].flip(-1) if batch.dtype == torch.int64 else batch[:1].flip(-1) * 0.5 + 0.1])
    trained = [(name, parameter) for name, parameter in segment.named_parameters() if parameter.requires_grad]
    if not trained:
        return
    training, state = segment.training, torch.get_rng_state()
    output = segment.train()(pair.clone())
    segment.train(training)
    torch.set_rng_state(state)
    if not output.requires_grad or len(output) != len(pair):
        return
    for _, parameter in trained:
        parameter.grad = None
    # Of the first row alone, with another weight for each value of its output.
    output[0].backward(torch.arange(output[0].numel(), dtype=output.dtype).cos().view_as(output[0]))
    truly = {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for name, parameter in trained
    }
    whole = torch.stack([gradient.norm() for gradient in truly.values()]).norm()
    if not torch.isfinite(whole):
        return
    for name, parameter in trained:
        of_records = getattr(parameter, "grad_sample", None)
        if isinstance(of_records, torch.Tensor) and len(of_records) == len(pair):
            apart = torch.stack([of_records[0] - truly[name], of_records[1]]).norm()
            if apart <= 1e-3 * (whole + 1e-3):
                continue
        elif isinstance(of_records, torch.Tensor):
            # Rows that are folded into the batch are found by their number.
            continue
        raise ConfigError(
            f"the gradient of a single record by '{name}' cannot be told, so that nothing could be clipped: it is used "
            "outside of its layer or not at all; give each use a layer of its own, or freeze it (requires_grad_(False))"
        )


def check_apart(segment: nn.Module, batch: torch.Tensor) -> None:
    """Raise `ConfigError` for a segment in which one row's value depends on another's, or that remembers batches.

    Args:
        batch: at least one row.
    """
    first = batch[:1]
    # Beside it a row of zeros, and the same row backwards and larger.
    other = first.flip(-1) if first.dtype == torch.int64 else first.flip(-1) * 3 + 1
    pairs = [torch.cat([first, moved]) for moved in (torch.zeros_like(first), other)]
    training = segment.training
    buffers = {name: buffer.clone() for name, buffer in segment.named_buffers()}
    state = torch.get_rng_state()
    with torch.no_grad():
        segment.eval()
        outputs = [segment(pair.clone()) for pair in pairs]
        segment.train()
        segment(pairs[0].clone())
        changed = [name for name, buffer in segment.named_buffers() if not torch.equal(buffer, buffers[name])]
        for name, buffer in segment.named_buffers():
            buffer.copy_(buffers[name])
    segment.train(training)
    torch.set_rng_state(state)
    if changed:
        raise ConfigError(f"the buffer '{changed[0]}' remembers batches without noise: no budget covers it; remove it")
    if len(outputs[0]) != 2 or not torch.allclose(outputs[0][0], outputs[1][0], rtol=1e-3, atol=1e-4):
        raise ConfigError(
            "a segment makes one row's value of another row too, so that no record's part can be clipped: normalise "
            "within a row (a layer or group norm), not over the batch"
        )


def _not_in_place(segment: fx.GraphModule) -> None:
    for node in segment.graph.nodes:
        if node.kwargs.get("inplace"):
            node.kwargs = {**node.kwargs, "inplace": False}
    segment.recompile()


def with_group_norm(model: nn.Module) -> nn.Module:
    """Return a copy of a model with a group norm, of up to 32 groups, in the place of every batch norm.

    The new layers begin anew: weights of the batch norms, and what they have seen, are not taken over.

    Example:
        >>> from torchvision.models import resnet18
        >>> private = with_group_norm(resnet18(num_classes=10))
        >>> any(isinstance(one, torch.nn.BatchNorm2d) for one in private.modules())
        False
    """
    fixed: nn.Module = ModuleValidator.fix(model)
    return fixed
