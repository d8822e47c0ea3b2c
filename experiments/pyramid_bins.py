"""PSPNet: four grids are better than one, averages better than maxima, and reduction helps.

    python -m experiments.pyramid_bins --scale small --data CamVid

The six pyramids of Table 1 and the network without any.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments import trial
from segjax import ops
from segjax.models import PSPNet
from segjax.models.layers import FCNHead, Norm
from segjax.models.pspnet import POOLS
from segjax.models.resnet import ResNet

BINS = (1, 2, 3, 6)


class WithoutReduction(nn.Module):
    """`PSPNet` whose pooled maps keep all their channels, without convolution of their own.

    Maps float [B, H, W, 3] to "logits" and "aux" as PSPNet does. Without bins it is the dilated FCN
    that the paper compares with.
    """

    num_classes: int
    depth: int
    width: int
    bins: tuple[int, ...] = BINS
    pool: str = "average"
    norm: Norm = Norm(decay=0.9)

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        backbone = ResNet(
            self.depth, 8, stem="deep", width=self.width, norm=self.norm, name="backbone"
        )
        ends = backbone(image, train)
        x = ends["stage4"]
        maps = [x]
        for bins in self.bins:
            pooled = POOLS[self.pool](x, bins)  # [B, bins, bins, C]
            size = x.shape[1:3]
            maps.append(ops.resize(pooled, size, align_corners=True, antialias=False))

        def head(name: str, features: int, x: jax.Array) -> jax.Array:
            fields = {"dropout": 0.1, "dropout_dims": (1, 2), "norm": self.norm, "name": name}
            return FCNHead(self.num_classes, features, **fields)(x, train)

        return {
            "logits": head("head", x.shape[-1] // 4, jnp.concatenate(maps, axis=-1)),
            "aux": head("aux", ends["stage3"].shape[-1] // 4, ends["stage3"]),
        }


def trials(scale: trial.Scale) -> list[trial.Trial]:
    """Returns a trial for each pyramid."""
    size: dict[str, Any] = {"depth": scale.depth, "width": scale.resnet_width}
    networks: dict[str, nn.Module] = {"none": WithoutReduction(trial.NUM_CLASSES, bins=(), **size)}
    for pool in ("max", "average"):
        for bins in ((1,), BINS):
            model = WithoutReduction(trial.NUM_CLASSES, bins=bins, pool=pool, **size)
            networks[f"{', '.join(map(str, bins))}, {pool}"] = model
        model = PSPNet(trial.NUM_CLASSES, pool=pool, norm=Norm(decay=0.9), **size)
        networks[f"1, 2, 3, 6, {pool}, reduced"] = model
    found = []
    for name, model in networks.items():
        config = trial.resnet_config(scale, model)
        config.loss.heads = {"logits": 1.0, "aux": 0.4}
        found.append(trial.Trial(name, config))
    return found


CLAIM = trial.Claim(
    "pyramid_bins",
    "PSPNet, Table 1 (ResNet-50, ADE20K val, mean IoU): no pyramid 37.23; one bin, max 39.94, "
    "average 40.07; bins 1, 2, 3, 6, max 40.18, average 41.07; reduced, max 40.87, average 41.68.",
    trials,
)

if __name__ == "__main__":
    trial.main(CLAIM)
