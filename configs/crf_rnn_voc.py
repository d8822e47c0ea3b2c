"""CRF as a recurrent network (Zheng et al., 2015) on PASCAL VOC 2012.

    python train.py --config=configs/crf_rnn_voc.py --config.data.dir=VOCdevkit/VOC2012 \
        --config.train.init_from=runs/deeplab_v1 --workdir=runs/crf_rnn

DeepLab v1 LargeFOV stands in for the authors' FCN-8s: init_from names a run of
configs/deeplab_v1_voc.py. Kernels, their first weights, the normalisation after filtering, five
iterations in training and ten in test, whole images one by one and momentum 0.99 are those of the
authors' program. Its loss is a sum over pixels with learning rate 1e-13; here it is the mean over
some 180,000 pixels, so the rate is that many times larger, with the authors' multipliers for the
CRF. How long they trained is not in the paper. They add 66,099 images of COCO for the higher score.

Hardware: the paper used one GPU.
Published: mean IoU on 346 images of val, FCN-8s 61.3, with a CRF after it 63.7, trained together
69.6; with COCO 68.3, 69.5 and 72.9.
Measured: not yet run.
"""

from segjax.config import CRF, Augment, Config, Data, Eval, Input, Loss, Optim, Train
from segjax.models import DeepLabV1


def get_config() -> Config:
    """Returns the configuration of the run."""
    return Config(
        model=DeepLabV1(num_classes=21),
        input=Input(mean=(122.675, 116.669, 104.008), std=(1.0, 1.0, 1.0), bgr=True),
        data=Data(name="voc_segmentation", train_split="trainaug", canvas=(513, 513)),
        augment=Augment(flip=0.5),
        loss=Loss(align_corners=True),
        crf=CRF(
            learn=True, w1=5.0, alpha=160.0, beta=3.0, w2=3.0, gamma=3.0, normalization="after"
        ),
        optim=Optim(
            lr=1.8e-8,
            schedule="fixed",
            momentum=0.99,
            weight_decay=5e-4,
            lr_multipliers={"^crf/(bilateral|spatial)": 1e4, "^crf/compatibility": 1e3},
            no_decay=("^crf/", "/bias"),
        ),
        train=Train(steps=100_000, batch_size=1, eval_every=10_000),
        eval=Eval(batch_size=4, trimap_widths=(2, 5, 10, 20, 40)),
    )
