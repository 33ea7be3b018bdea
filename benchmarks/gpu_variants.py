"""Parts of `benchmarks.gpu` for variants that the package does not use, unless one proves faster.

Each alternates a variant with the shipped code, so that a slowdown of the machine affects both.
"""

import contextlib
import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import nn

from datadream.errors import ConfigError
from datadream.models import device
from datadream.models.generators import lora, unet
from datadream.models.generators.base import Generator

from . import together
from .gpu_bench import Bench, part
from .gpu_parts import classifier_step, first_seconds, lean_lora, unet_pass, unet_step

Around = Callable[[], contextlib.AbstractContextManager[Any]]


def in_turn(
    bench: Bench, ways: Mapping[str, tuple[Around, Callable[[], Any]]], rounds: int = 6
) -> dict[str, Any]:
    """Return the median milliseconds of each function within its context, by name.

    The first two rounds are warm-up. A variant that fails reports why, and the others go on.
    """
    found: dict[str, list[float]] = {name: [] for name in ways}
    broken: dict[str, str] = {}
    for _ in range(rounds + 2):
        for name, (around, run) in ways.items():
            if name not in broken:
                try:
                    with around():
                        found[name].append(bench.milliseconds(run, repeats=1, warm=1))
                except Exception as error:  # the other variants are still worth measuring
                    broken[name] = repr(error)[:600]
    seen = {name: statistics.median(times[2:]) for name, times in found.items() if times[2:]}
    return seen | {name: {"error": why} for name, why in broken.items()}


@contextlib.contextmanager
def layout(network: nn.Module, kind: torch.memory_format) -> Iterator[None]:
    """Change the memory layout of a network's weights within the context."""
    network.to(memory_format=kind)
    try:
        yield
    finally:
        network.to(memory_format=torch.contiguous_format)


@contextlib.contextmanager
def searched() -> Iterator[None]:
    """Let cuDNN benchmark its convolution algorithms and use the fastest."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextlib.contextmanager
def both(*around: Around) -> Iterator[None]:
    """Enter several contexts, the first one outermost."""
    with contextlib.ExitStack() as stack:
        for one in around:
            stack.enter_context(one())
        yield


def replayed(run: Callable[[], Any]) -> Callable[[], None]:
    """Capture `run` as a CUDA graph, which the host launches with a single call."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


@part(40)
def sampling_layouts(bench: Bench) -> dict[str, Any]:
    """Return the time of a guided UNet pass by layout, attention, search and CUDA graph."""
    pipe = bench.load()
    once, images = unet_pass(bench, pipe)
    last = torch.channels_last
    ways: dict[str, tuple[Around, Callable[[], Any]]] = {
        "contiguous": (contextlib.nullcontext, once),
        "channels-last": (lambda: layout(pipe.unet, last), once),
        "contiguous, cuDNN attention": (bench.cudnn_attention, once),
        "contiguous, cudnn.benchmark": (searched, once),
        "channels-last, cudnn.benchmark": (
            lambda: both(lambda: layout(pipe.unet, last), searched),
            once,
        ),
    }
    if bench.cuda:
        with searched():
            ways["contiguous, graph"] = (contextlib.nullcontext, replayed(once))
    found: dict[str, Any] = {"images": images, "ms": in_turn(bench, ways)}
    found["profile"] = bench.profiled(once, "sampling, contiguous")
    return found


@part(30)
def sampling_cached(bench: Bench) -> dict[str, Any]:
    """Return the seconds of whole images with DeepCache, and how much it changes them."""
    try:
        from DeepCache import DeepCacheSDHelper
    except ImportError:  # not a dependency of the project
        return {"left out": "DeepCache is not installed"}
    pipe, count = bench.load(), 2 if bench.tiny else 10
    steps = bench.size.solver

    def draw():
        noise = [torch.Generator().manual_seed(i) for i in range(count)]
        return pipe(
            ["a photo of a heron"] * count,
            num_inference_steps=steps,
            generator=noise,
            guidance_scale=2.0,
            output_type="pt",
        ).images.float()

    plain, found = (
        draw(),
        {"images": count, "steps": steps, "plain_ms": bench.milliseconds(draw, 1, 0)},
    )
    for interval in (2, 3):
        helper = DeepCacheSDHelper(pipe=pipe)
        helper.set_params(cache_interval=interval, cache_branch_id=0)
        helper.enable()
        try:
            apart = float((draw() - plain).norm() / plain.norm())
            found[f"every {interval}"] = {"ms": bench.milliseconds(draw, 1, 0), "apart": apart}
        finally:
            helper.disable()
    return found


class Fixed(nn.Module):
    """A UNet whose inputs and output are tensors, as a CUDA graph requires."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor, times: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Return the network's prediction."""
        return self.network(x, times, text).sample


def gradients(
    run: Callable[[], torch.Tensor], parameters: list[nn.Parameter], times: int
) -> list[torch.Tensor]:
    """Return copies of the gradients of the loss `run()`, summed over `times` backward passes."""
    for parameter in parameters:
        parameter.grad = None
    for _ in range(times):
        run().backward()
    found = [p.grad.clone() for p in parameters if p.grad is not None]
    for parameter in parameters:
        parameter.grad = None
    return found


def graphed_step(bench: Bench) -> tuple[Generator, Callable[[], Any], dict[str, float]]:
    """Return (generator, a step of its UNet's LoRA as CUDA graphs, errors of its gradients).

    The errors are relative, for one backward pass and for two accumulated ones: a graph writes its
    gradients to the same memory each time.
    """
    generator, _ = unet_step(bench)
    latents, noise, times, text = together.problem(generator.pipe, bench.recipe().adapt, 1)
    own = [p for p in generator.network.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(own, lr=1e-4, fused=True)
    text, fixed = text.requires_grad_(), Fixed(generator.network)

    def loss(network):
        return nn.functional.mse_loss(network(latents, times, text).float(), noise.float())

    eager = [gradients(lambda: loss(fixed), own, count) for count in (1, 2)]
    graph = fixed
    if bench.cuda:
        graph = torch.cuda.make_graphed_callables(fixed, (latents, times, text))
    apart = {}
    for count, exact in zip((1, 2), eager, strict=True):
        seen = gradients(lambda: loss(graph), own, count)
        off = sum(float((a - b).norm() ** 2) for a, b in zip(seen, exact, strict=True))
        size = sum(float(b.norm() ** 2) for b in exact)
        apart[f"{count} passes"] = (off / size) ** 0.5

    def step():
        optimiser.zero_grad()
        loss(graph).backward()
        optimiser.step()

    return generator, step, apart


@part(30)
def adapt_graphed(bench: Bench) -> dict[str, Any]:
    """Return the time of the UNet's step as shipped, as CUDA graphs, and with lean LoRA."""
    generator, once = unet_step(bench)
    found: dict[str, Any] = {"as shipped": bench.milliseconds(once, 4, 2)}
    with bench.cudnn_attention():
        found["cuDNN attention"] = bench.milliseconds(once, 4, 1)
    lora.remove_lora(generator)
    before = Linear.forward
    for name, forward in (("graphed", before), ("graphed, lean LoRA", lean_lora)):
        Linear.forward = forward
        try:
            generator, step, apart = graphed_step(bench)
            found[name] = bench.milliseconds(step, 4, 2)
            found[f"{name}, apart"] = apart
            found[f"{name}, profile"] = bench.profiled(step, f"UNet's step, {name}")
        except Exception as error:  # the other variants are still worth measuring
            found[name] = {"error": repr(error)[:900]}
        finally:
            Linear.forward = before
            lora.remove_lora(generator)
        bench.forget()
    return found


@part(60)
def adapt_blocks_compiled(bench: Bench) -> dict[str, Any]:
    """Return the time of the UNet's step with its transformer blocks compiled one by one."""
    generator, once = unet_step(bench)
    network: Any = generator.network
    network.compile_repeated_blocks(backend=bench.backend)
    found = {"compile_s": first_seconds(bench, once), "ms": bench.milliseconds(once, 4, 1)}
    found["profile"] = bench.profiled(once, "UNet's step, blocks compiled")
    lora.remove_lora(generator)
    return found


@part(45)
def classifier_variants(bench: Bench) -> dict[str, Any]:
    """Return the time of the classifier's passes as shipped, as a graph, and compiled."""
    _, model, source, step = classifier_step(bench)
    found: dict[str, Any] = {"as shipped": bench.milliseconds(step, 4, 1)}
    images, targets, _ = source.at(0)
    tokens = model.prompts([f"a photo of a {i}" for i in range(10)])
    parameters = [p for p in model.parameters() if p.requires_grad]

    def plain_step():
        loss = nn.functional.cross_entropy(model(images, tokens), targets)
        torch.autograd.grad(loss, parameters)

    if bench.cuda:
        try:
            found["graphed"] = bench.milliseconds(replayed(plain_step), 4, 1)
        except Exception as error:
            found["graphed"] = {"error": repr(error)[:900]}
    for block in model.clip.visual.transformer.resblocks:
        block.compile(backend=bench.backend)
    found["compile_s"] = first_seconds(bench, step)
    found["blocks compiled"] = bench.milliseconds(step, 4, 1)
    if bench.cuda:
        try:
            found["blocks compiled, graphed"] = bench.milliseconds(replayed(plain_step), 4, 1)
        except Exception as error:
            found["blocks compiled, graphed"] = {"error": repr(error)[:900]}
    return found


@part(20)
def adapting_by_graph(bench: Bench) -> dict[str, Any]:
    """Return steps per second of the whole adaptation, as shipped and with a UNet graph."""
    if not bench.cuda:
        return {}
    found = {}
    shipped = unet.UNet.predict
    for name in ("as shipped", "UNet as a graph"):
        stage = bench.stage("adapt", "product")
        graphs: dict[Any, Any] = {}

        def predict(self, noisy, times, condition, graphs=graphs):
            text, _ = condition
            x = noisy.to(self.network.dtype)
            key = tuple(x.shape)
            if key not in graphs:
                sample = (x.clone(), times.clone(), text.detach().clone().requires_grad_())
                graphs[key] = torch.cuda.make_graphed_callables(Fixed(self.network), sample)
            return graphs[key](x, times, text)

        try:
            if name != "as shipped":
                unet.UNet.predict = predict
            stage.measure()
            seconds = [stage.measure()[0] for _ in range(2)]
            found[name] = {"per_s": bench.size.adapt / min(seconds), "seconds": seconds}
        except Exception as error:
            found[name] = {"error": repr(error)[:900]}
        finally:
            unet.UNet.predict = shipped
        lora.remove_lora(stage.generator)
        del stage, graphs
        bench.forget()
    return found


@part(45)
def deterministic_steps(bench: Bench) -> dict[str, Any]:
    """Return milliseconds of a UNet's and a classifier's passes, as shipped and deterministic.

    `equal` says whether two runs give bit-identical gradients, for each. On a GPU the environment
    variable for cuBLAS must be set before the run: see `device.require_deterministic`.
    """
    found: dict[str, Any] = {}
    ways: dict[str, Around] = {"as shipped": contextlib.nullcontext}
    ways["deterministic"] = device.deterministic

    def unet_gradients():
        generator, _ = unet_step(bench)
        latents, noise, times, text = together.problem(generator.pipe, bench.recipe().adapt, 1)
        own = [p for p in generator.network.parameters() if p.requires_grad]
        network = Fixed(generator.network)

        def loss():
            return nn.functional.mse_loss(network(latents, times, text).float(), noise.float())

        return lambda: gradients(loss, own, 1), lambda: lora.remove_lora(generator)

    def classifier_gradients():
        _, model, source, _ = classifier_step(bench)
        images, targets, _ = source.at(0)
        tokens = model.prompts([f"a photo of a {i}" for i in range(10)])
        own = [p for p in model.parameters() if p.requires_grad]

        def loss():
            torch.manual_seed(0)  # dropout
            return nn.functional.cross_entropy(model(images, tokens), targets)

        return lambda: gradients(loss, own, 1), lambda: None

    for name, prepare in (("UNet", unet_gradients), ("classifier", classifier_gradients)):
        run, end = prepare()
        found[name] = {"ms": in_turn(bench, {way: (around, run) for way, around in ways.items()})}
        found[name]["equal"] = {way: _equal_twice(run, around) for way, around in ways.items()}
        end()
        bench.forget()
    return found


def _equal_twice(run, around):
    """Return whether two passes give bit-identical gradients; None if they fail."""
    try:
        with around():
            one, other = run(), run()
    except (RuntimeError, ConfigError):  # `ms` says why
        return None
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
