"""Would class adapters gain from training in one batched pass? Benchmark of a UNet step.

The step is run for all adapters together and one after the other, alternating. All adapters share
the frozen weights, so one pass over images of several classes can share their products; only the
low-rank products stay separate, as batched ones. See `python -m benchmarks.together --help`.
"""

import argparse
import math
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear

from datadream.methods.recipes import recipe
from datadream.models.device import device, dtype_for
from datadream.models.generators.load import load_generator
from datadream.models.generators.lora import add_generator_lora, remove_lora
from datadream.paths import paths
from datadream.statistics import mean_interval
from datadream.store.files import write_json
from datadream.store.provenance import provenance


class Together(torch.nn.Module):
    """A linear layer whose batch holds the images of several adapters, a block each.

    The product with the frozen weights is shared; every block has its own LoRA.
    """

    def __init__(self, layer, count):
        super().__init__()
        self.base, self.scale = layer.base_layer, layer.scaling["default"]
        # The weights of `count` separate adapters, stacked: (count, in, rank) and (count, rank,
        # out).
        self.down = torch.nn.Parameter(
            layer.lora_A["default"].weight.detach().T.repeat(count, 1, 1)
        )
        self.up = torch.nn.Parameter(layer.lora_B["default"].weight.detach().T.repeat(count, 1, 1))

    def forward(self, x):
        """Return the layer's output for `x`, (count * images, ..., in)."""
        own = torch.bmm(
            torch.bmm(
                x.flatten(0, -2).view(len(self.down), -1, x.shape[-1]).to(self.down.dtype),
                self.down,
            ),
            self.up,
        )
        return self.base(x) + self.scale * own.view(*x.shape[:-1], -1).to(x.dtype)


def stack(unet, count):
    """Replace the LoRA layers of a UNet by `Together` ones; return their parameters."""
    for name, layer in [(n, m) for n, m in unet.named_modules() if isinstance(m, Linear)]:
        unet.set_submodule(name, Together(layer, count))
    return [p for p in unet.parameters() if p.requires_grad]


def problem(pipe, options, count):
    """Return (latents, noise, times, texts) of one step of `count` class adapters.

    Each has a batch of `options.batch`.
    """
    torch.manual_seed(0)
    size, images = pipe.unet.config.sample_size, count * options.batch
    shape = (images, pipe.unet.config.in_channels, size, size)
    text = torch.randn(
        images, pipe.tokenizer.model_max_length, pipe.unet.config.cross_attention_dim
    )
    kind = {"device": pipe.unet.device, "dtype": pipe.unet.dtype}
    latents, noise = torch.randn(shape).to(**kind), torch.randn(shape).to(**kind)
    times = torch.randint(
        pipe.scheduler.config.num_train_timesteps, (images,), device=pipe.unet.device
    )
    return latents, noise, times, text.to(**kind)


def step(unet, optimiser, latents, noise, times, text, count=1):
    """Run one optimiser step of `count` adapters.

    The loss is the sum of their mean losses, which gives each the gradient that it would have
    alone.
    """
    optimiser.zero_grad()
    predicted = unet(latents, times, text).sample
    (count * F.mse_loss(predicted.float(), noise.float())).backward()
    optimiser.step()


def timed(run):
    """Return the seconds of `run()`."""
    wait = torch.cuda.synchronize if device().type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - start


def ways(profile, count, name=""):
    """Return name -> a function that runs one step of `count` adapters and returns its seconds.

    `name` is the generator's; "" takes the profile's.
    """
    options = recipe(profile).adapt
    generator = load_generator(
        name or recipe(profile).generator, dtype_for(recipe(profile).precision, training=True)
    )
    pipe = generator.pipe
    work = problem(pipe, options, count)
    parts = list(zip(*(part.split(options.batch) for part in work), strict=True))

    def apart():
        parameters = add_generator_lora(generator, options)
        single = torch.optim.AdamW(
            [p for n, p in parameters.items() if n.startswith("unet")], lr=options.lr, fused=True
        )
        seconds = timed(lambda: [step(pipe.unet, single, *part) for part in parts])
        remove_lora(generator)
        return seconds

    def together():
        add_generator_lora(generator, options)
        originals = {
            name: layer for name, layer in pipe.unet.named_modules() if isinstance(layer, Linear)
        }
        optimiser = torch.optim.AdamW(stack(pipe.unet, count), lr=options.lr, fused=True)
        seconds = timed(lambda: step(pipe.unet, optimiser, *work, count))
        for name, layer in originals.items():
            pipe.unet.set_submodule(name, layer)
        remove_lora(generator)
        return seconds

    return {"apart": apart, "together": together}


def main(arguments=None):
    """Measure, print and write benchmarks/results/together.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.together", description=__doc__)
    parser.add_argument(
        "--profile",
        default="mini",
        choices=("mini", "paper"),
        help="whose generator and batch (default: %(default)s)",
    )
    parser.add_argument(
        "--count",
        type=int,
        action="append",
        help="adapters at once; may be repeated (default: 2 and 4)",
    )
    parser.add_argument(
        "--rounds", type=int, default=20, help="alternating measurements (default: %(default)s)"
    )
    options, rows = parser.parse_args(arguments), []
    for count in options.count or (2, 4):
        runs, seconds = ways(options.profile, count), {"apart": [], "together": []}
        for _ in range(options.rounds + 1):
            for way, run in runs.items():
                seconds[way].append(run())
        logs = {way: np.log(values[1:]) for way, values in seconds.items()}  # the first is warm-up
        ratio = [math.exp(x) for x in mean_interval(logs["apart"] - logs["together"])]
        rows.append(
            {
                "adapters": count,
                "ratio": ratio,
                "seconds": {way: float(np.median(values[1:])) for way, values in seconds.items()},
            }
        )
        print(
            f"{count} adapters: {ratio[0]:.2f} times as fast together ({ratio[1]:.2f} to "
            f"{ratio[2]:.2f})",
            flush=True,
        )
    write_json(
        paths()["together"],
        {"profile": options.profile, "rounds": options.rounds, "together": rows, **provenance()},
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
