"""Relevance from the output of a network back to its pixels: what comes in at a layer goes out of it, and no more.

Layers get rules as hooks of zennit. Between layers, sums, products, averages and attention are rewritten while the
network runs, since neither hooks nor gradients keep relevance there:

- Convolutions and linear layers share the relevance of an output over their inputs in proportion to contributions of
  at least 0 (the z+ rule, Montavon et al. 2017, "Explaining nonlinear classification decisions with deep Taylor
  decomposition"; for pixels the z^B rule, which knows their bounds). Biases get nothing. An output without such
  contributions, which only its bias has raised, spreads its relevance evenly over what it sees.
- Batch normalisation is merged into the convolution before it. Other normalisation, activations and factors pass
  relevance through.
- Sums, averages and attention share in proportion to the sizes of their terms (for residual sums: Otsuki et al. 2024,
  "Layer-Wise Relevance Propagation with Conservation Property for ResNet"). Gates and attention weights count as
  constants; tokens that hold no pixels get nothing.

So relevance is never negative, and what each view starts with is what its pixels get.
"""

import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from zennit.canonizers import NamedMergeBatchNorm
from zennit.composites import NameMapComposite
from zennit.core import Hook, ParamMod
from zennit.rules import ClampMod, Pass

from pipeline.errors import PipelineError

_LINEAR = (nn.Conv2d, nn.Linear)
_POOLING = (nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.MaxPool2d)
_TOLERANCE = 1e-3  # of rounding
_LEAST = 1e-20  # contributions that add up to less are none


Through = Callable[[Any, Tensor], Tensor]
"""How views go through a network, or through a copy of it."""


@contextmanager
def conserving(
    network: nn.Module,
    through: Through,
    views: Float[Tensor, "view 3 side_px side_px"],
    *,
    bounds: tuple[Tensor, Tensor],
    device: str,
) -> Iterator[Callable[[Tensor], Tensor]]:
    """Make a copy of a network in which gradients are relevance; the network itself is not touched.

    Args:
        network: in whatever state; the copy is in evaluation mode.
        through: takes the network, or its copy, and views.
        views: of which the first is sent through, to find out which layers there are and what they do.
        bounds: the least and the largest value of pixels where they enter the first layer.
        device: where the copy is.

    Yields:
        Sends views through the copy. The gradient of what comes out, weighted with relevance, is the relevance of the
        views.

    Raises:
        PipelineError: the network does something that cannot be rewritten.
    """
    running = copy.deepcopy(network).to(device).eval().requires_grad_(False)
    for module in running.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
    first = views[:1].detach().to(device)
    bounds = (bounds[0].to(device), bounds[1].to(device))
    first_tokens = max(getattr(module, "num_prefix_tokens", 0) for module in running.modules())

    def run(views: Tensor) -> Tensor:
        with _Rewritten(first_tokens):
            return through(running, views)

    with torch.no_grad():
        plain, composite = _watch(running, lambda: through(running, first), bounds)
    with composite.context(running):
        made = run(first.requires_grad_()).detach()
        if not torch.allclose(made, plain, rtol=_TOLERANCE, atol=_TOLERANCE * float(plain.abs().max())):
            raise unsupported("it changes values in place")
        yield run


def unsupported(why: str) -> PipelineError:
    """Say that a network has no saliency of this kind."""
    return PipelineError(
        f"relevance cannot be followed through this backbone ({why}): leave prp out of evaluate.saliency"
    )


def _watch(
    network: nn.Module, run: Callable[[], Tensor], bounds: tuple[Tensor, Tensor]
) -> tuple[Tensor, NameMapComposite]:
    """Find out what each layer does by watching the network run: what it gives, and the rules of its layers."""
    names = {module: name for name, module in network.named_modules()}
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def note(module: nn.Module, given: tuple[Any, ...], made: Any) -> None:
        if len(given) == 1 and isinstance(given[0], Tensor) and isinstance(made, Tensor):
            calls.append((module, given[0], made))

    handles = [module.register_forward_hook(note) for module in names]
    try:
        made = run()
    finally:
        for handle in handles:
            handle.remove()
    linear = [(module, given, output) for module, given, output in calls if isinstance(module, _LINEAR)]
    by_output = {id(output): module for module, _, output in linear}
    merges = [
        ([names[by_output[id(given)]]], names[module])
        for module, given, _ in calls
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine and id(given) in by_output
    ]
    passing = [names[module] for module, given, output in calls if _passes(module, given, output)]
    sees_pixels = bool(linear) and linear[0][1].dim() == 4 and linear[0][1].shape[1] == 3
    pixels = [names[linear[0][0]]] if sees_pixels else []
    others = [names[module] for module, _, _ in linear if names[module] not in pixels]
    rules = [(pixels, PositiveShares(*bounds)), (others, PositiveShares()), (passing, _PassOn())]
    return made, NameMapComposite(rules, canonizers=[_ExactMerge(merges)])


def _passes(module: nn.Module, given: Tensor, made: Tensor) -> bool:
    """Whether a module does something to each value or vector by itself: activation, normalisation, scaling."""
    inside = (*_LINEAR, *_POOLING)
    return (
        given.shape == made.shape and given is not made and not any(isinstance(own, inside) for own in module.modules())
    )


class _ExactMerge(NamedMergeBatchNorm):  # type: ignore[misc]  # zennit has no types
    """Batch normalisation that changes nothing after the merge: zennit's still divides by sqrt(1 + eps)."""

    def register(self, linears: Sequence[nn.Module], batch_norm: nn.modules.batchnorm._BatchNorm) -> None:
        """Merge, and take eps off the variance."""
        super().register(linears, batch_norm)
        assert batch_norm.running_var is not None
        batch_norm.running_var.data -= batch_norm.eps


class _PassOn(Pass):  # type: ignore[misc]  # zennit has no types
    """Relevance goes through as it is."""

    def backward(
        self, module: nn.Module, grad_input: Sequence[Tensor], grad_output: Sequence[Tensor | None]
    ) -> tuple[Tensor | None]:
        """Pass on the relevance of the output; some functions beneath have more outputs, which nobody sees."""
        return (grad_output[0],)


class PositiveShares(Hook):  # type: ignore[misc]  # zennit has no types
    """The z+ rule; with bounds of the inputs, the z^B rule."""

    def __init__(self, low: Tensor | None = None, high: Tensor | None = None) -> None:
        super().__init__()
        self._low, self._high = low, high

    def copy(self) -> "PositiveShares":
        """Make a hook for one more layer."""
        return PositiveShares(self._low, self._high)

    def forward(self, module: nn.Module, input: tuple[Tensor, ...], output: Tensor) -> None:
        """Keep what the layer is given."""
        self.stored_tensors["input"] = input

    def backward(
        self, module: nn.Module, grad_input: Sequence[Tensor], grad_output: Sequence[Tensor | None]
    ) -> tuple[Tensor | None]:
        """Share the relevance of the layer's outputs over its inputs; a gate's layers are not asked about."""
        if grad_output[0] is None:
            return (None,)
        values = self.stored_tensors["input"][0].detach()

        def with_weights(change: ParamMod) -> Callable[[Tensor], Tensor]:
            def made(values: Tensor) -> Tensor:
                with change(module) as changed:
                    output: Tensor = changed.forward(values)
                return output

            return made

        high_values = (values if self._low is None else values - self._low).clamp(min=0)
        low_values = (values if self._high is None else values - self._high).clamp(max=0)
        parts = [(high_values, with_weights(ClampMod(min=0.0, zero_params="bias")))]
        if low_values.any():  # activations are often at least 0: half of the work
            parts.append((low_values, with_weights(ClampMod(max=0.0, zero_params="bias"))))
        even = with_weights(ParamMod(lambda weight, _: torch.ones_like(weight), zero_params="bias"))
        return (_shared_out(grad_output[0], parts, even),)


def _shared_out(
    relevance: Tensor, parts: Sequence[tuple[Tensor, Callable[[Tensor], Tensor]]], even: Callable[[Tensor], Tensor]
) -> Tensor:
    """Share the relevance of outputs over inputs in proportion to contributions.

    Args:
        relevance: of the outputs.
        parts: inputs, and the linear functions that make outputs of them, whose sum is what there is to share; no
            input contributes less than 0.
        even: makes outputs of inputs that are all 1, for outputs to which no input contributes.
    """
    shares, left = _shared_where_any(relevance, parts)
    if left.any():
        evenly, _ = _shared_where_any(left, [(torch.ones_like(shares), even)])
        shares = shares + evenly
    return shares


def _shared_where_any(
    relevance: Tensor, parts: Sequence[tuple[Tensor, Callable[[Tensor], Tensor]]]
) -> tuple[Tensor, Tensor]:
    """Share relevance out where there are contributions; also give the relevance of outputs that have none."""
    with torch.enable_grad():
        inputs = [values.detach().requires_grad_() for values, _ in parts]
        outputs = [function(values) for values, (_, function) in zip(inputs, parts, strict=True)]
    total = functools.reduce(torch.add, [output.detach() for output in outputs])
    factor = relevance / total.clamp_min(_LEAST)
    gradients = torch.autograd.grad(outputs, inputs, [factor] * len(outputs))
    shares = [own.detach() * gradient for own, gradient in zip(inputs, gradients, strict=True)]
    return functools.reduce(torch.add, shares), torch.where(total > _LEAST, 0, relevance - factor * total)


class _Routed(torch.autograd.Function):
    """A value that was computed from sources, whose relevance a rule shares among them."""

    @staticmethod
    def forward(
        context: Any, rule: Callable[..., tuple[Tensor | None, ...]], value: Tensor, *sources: Tensor
    ) -> Tensor:
        context.rule = rule
        context.save_for_backward(*sources)
        return value

    @staticmethod
    def backward(context: Any, relevance: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *context.rule(relevance, *context.saved_tensors)


@dataclass(frozen=True, slots=True)
class _Call:
    """A call of a function, whose result is to be shared among some of its arguments.

    Attributes:
        sources: positions of the arguments that lead back to pixels.
        first_tokens: leading tokens of a ViT that hold no pixels.
    """

    function: Callable[..., Tensor]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    sources: tuple[int, ...]
    first_tokens: int

    def again(self, changed: Mapping[int, Tensor]) -> Tensor:
        """Call the function with other values in the place of some arguments."""
        args = (changed.get(idx, value) for idx, value in enumerate(self.args))
        return self.function(*args, **self.kwargs)


def _of_sum(call: _Call, relevance: Tensor, *terms: Tensor) -> tuple[Tensor | None, ...]:
    """In proportion to the sizes of the terms; equal parts where all are 0."""
    sizes = [term.abs() for term in terms]
    total = functools.reduce(torch.add, sizes)
    equal = 1 / len(terms)
    return tuple((relevance * torch.where(total > 0, size / total, equal)).sum_to_size(size.shape) for size in sizes)


def _of_product(call: _Call, relevance: Tensor, *factors: Tensor) -> tuple[Tensor | None, ...]:
    """To the factor with most values; smaller ones are gates. Factors of one size get equal parts."""
    largest = max(factor.numel() for factor in factors)
    num = sum(factor.numel() == largest for factor in factors)
    return tuple(
        (relevance / num).sum_to_size(factor.shape) if factor.numel() == largest else None for factor in factors
    )


def _of_quotient(call: _Call, relevance: Tensor, *sources: Tensor) -> tuple[Tensor | None, ...]:
    """To the numerator."""
    is_numerator = [idx == 0 for idx in call.sources]
    return tuple(
        relevance.sum_to_size(source.shape) if own else None for source, own in zip(sources, is_numerator, strict=True)
    )


def _of_average(call: _Call, relevance: Tensor, values: Tensor) -> tuple[Tensor | None, ...]:
    """In proportion to the sizes of the values."""

    def averaged(values: Tensor) -> Tensor:
        return call.again({0: values})

    return (_shared_out(relevance, [(values.abs(), averaged)], averaged),)


def _of_mixture(call: _Call, relevance: Tensor, *sources: Tensor) -> tuple[Tensor | None, ...]:
    """To what is mixed, which comes last, in proportion to its size; what weighs it counts as constant."""
    *weighing, mixed = call.sources
    weights = {idx: call.args[idx].abs() for idx in range(2)} if call.function in _PRODUCTS else {}

    def mixture(values: Tensor) -> Tensor:
        return call.again({**weights, mixed: values})

    def of_pixels(values: Tensor) -> Tensor:
        values = values.clone()
        values[..., : call.first_tokens, :] = 0
        return values

    size = of_pixels(sources[-1].abs())
    shares = _shared_out(relevance, [(size, mixture)], lambda ones: mixture(of_pixels(ones)))
    return *[None] * len(weighing), shares


_RULES: Mapping[str, Callable[..., tuple[Tensor | None, ...]]] = {
    "add": _of_sum,
    "sub": _of_sum,
    "__rsub__": _of_sum,
    "mul": _of_product,
    "div": _of_quotient,
    "mean": _of_average,
    "avg_pool2d": _of_average,
    "adaptive_avg_pool2d": _of_average,
    "matmul": _of_mixture,
    "scaled_dot_product_attention": _of_mixture,
}
_PRODUCTS = (torch.matmul, Tensor.matmul)
_IN_PLACE = {"add_": "add", "sub_": "sub", "mul_": "mul", "div_": "div"}  # also what ``x += y`` is


class _Rewritten(TorchFunctionMode):
    """Gives functions of values that lead back to pixels a rule instead of a gradient."""

    def __init__(self, first_tokens: int) -> None:
        super().__init__()
        self._first_tokens = first_tokens

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call FUNCTION, under its rule where it has one; nothing is changed in place then."""
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        if name in _IN_PLACE:
            name = _IN_PLACE[name]
            function = getattr(Tensor, name)
        sources = tuple(idx for idx, value in enumerate(args) if isinstance(value, Tensor) and value.requires_grad)
        if name not in _RULES or not sources:
            return function(*args, **kwargs)
        call = _Call(function, args, kwargs, sources, self._first_tokens)
        with torch.no_grad():
            value = call.again({})
        return _Routed.apply(functools.partial(_RULES[name], call), value, *(args[idx] for idx in sources))
