"""What the autoencoder makes of the few shots, encoded once where a view comes again."""

from functools import lru_cache

import torch

from ...data.transforms import generator_image, resized
from ...errors import ConfigError
from ...seeds import seed_for

# few shots kept in memory at the generator's size, about a MB each: 16 shots of 100 classes fit
PICTURES = 2048


@torch.no_grad()
def latent_moments(pipe, images):
    """Return mean and standard deviation of the autoencoder's posterior, (B, 2, C, h, w), for
    images (B, 3, S, S) in [-1, 1].
    """
    posterior = pipe.vae.encode(images.to(pipe.vae.device, pipe.vae.dtype)).latent_dist
    # The noise schedule's ends do not fit into half precision.
    return torch.stack([posterior.mean, posterior.std], 1).float()


def prediction_target(noise_scheduler, latents, noise, times):
    """Return what the UNet should predict: the noise, or the velocity. Raises ConfigError if the
    scheduler's type is neither.
    """
    kind = noise_scheduler.config.prediction_type
    if kind not in ("epsilon", "v_prediction"):
        raise ConfigError(
            f"the generator predicts {kind!r}; accepted: 'epsilon' (the paper's) and 'v_prediction'"
        )
    return noise if kind == "epsilon" else noise_scheduler.get_velocity(latents, noise, times)


class Views:
    """The latent moments of the training views: a picture that has one view only is encoded
    once, and so is each of a limited number.
    """

    def __init__(self, pipe, images, side, options, seed):
        self.pipe, self.side, self.options, self.seed, self.known = pipe, side, options, seed, {}
        # A camera's picture is many times larger than what its crops are cut from, and to resize it
        # again changes nothing.
        self.open = lru_cache(maxsize=PICTURES)(lambda i: resized(images.open(i), side))

    def _view(self, i, epoch):
        """Return (i, the number of picture i's view in `epoch`): 0 where there is one only, as
        of a square picture or the centre crop.
        """
        if (i, 0) in self.known:
            return i, 0
        width, height = self.open(i).size
        if self.options.crop == "center" or width == height:
            return i, 0
        return i, 1 + (epoch % self.options.crops if self.options.crops else epoch)

    def at(self, rows, epoch):
        """Return the moments (len(rows), 2, C, h, w) of the pictures `rows` in `epoch`; a random
        crop depends on the seed and its number.
        """
        views = [self._view(i, epoch) for i in rows]
        new = [view for view in views if view not in self.known]
        if new:
            images = []
            with torch.random.fork_rng():
                for view in new:
                    torch.manual_seed(seed_for(self.seed, "crop", *view))
                    images.append(generator_image(self.open(view[0]), self.side, self.options.crop))
            self.known |= dict(
                zip(new, latent_moments(self.pipe, torch.stack(images)), strict=True)
            )
        moments = torch.stack([self.known[view] for view in views])
        for view in new:  # a crop that does not come again is not kept
            if view[1] and not self.options.crops:
                del self.known[view]
        return moments
