"""Published scores, by the name of the configuration that follows the protocol."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Published:
    """A row of a published table; shares of 1."""

    what: str
    split: str
    mean_iou: float
    global_accuracy: float | None = None
    class_average: float | None = None


PUBLISHED = {
    "segnet_camvid": (Published("released tutorial, 367 images", "test", 0.502, 0.886, 0.659),),
    "segnet_basic_camvid": (
        Published("released tutorial, 367 images", "test", 0.463, 0.828, 0.623),
        Published("paper, Table 1, median-frequency balanced", "test", 0.477, 0.827, 0.620),
    ),
    "deeplab_v1_voc": (
        Published("paper, LargeFOV", "val", 0.6225),
        Published("paper, LargeFOV, CRF", "val", 0.6764),
    ),
    "deeplab_v2_vgg_voc": (
        Published("paper, ASPP-L", "val", 0.6896),
        Published("paper, ASPP-L, CRF", "val", 0.7157),
    ),
    "deeplab_v2_resnet101_voc": (
        Published("paper, ASPP, from COCO", "val", 0.7635),
        Published("paper, ASPP, from COCO, CRF", "val", 0.7769),
        Published("paper, three scales, from ImageNet, no scale augmentation", "val", 0.7127),
    ),
    "deeplab_v3_voc": (
        Published("paper, Table 6, output stride 16", "val", 0.7721),
        Published("paper, Table 6, output stride 8", "val", 0.7851),
        Published("paper, Table 6, output stride 8, scales and mirroring", "val", 0.7977),
    ),
    "deeplab_v3_voc_phase2": (Published("paper, after pretraining on COCO", "test", 0.857),),
    "deeplab_v3_cascade_voc": (
        Published("paper, Table 4, output stride 16", "val", 0.7666),
        Published("paper, Table 4, output stride 8", "val", 0.7805),
        Published("paper, Table 4, output stride 8, scales and mirroring", "val", 0.7935),
    ),
    "deeplab_v3_cityscapes": (
        Published("paper, output stride 16", "val", 0.7723),
        Published("paper, output stride 8", "val", 0.7782),
        Published("paper, output stride 8, scales and mirroring", "val", 0.7930),
    ),
    "pspnet_ade20k": (
        Published("paper, Table 3, single scale", "val", 0.4168, 0.8004),
        Published("paper, Table 3, multi-scale", "val", 0.4278, 0.8076),
    ),
    "pspnet_voc": (
        Published("authors' PyTorch code, single scale", "val", 0.7907, 0.9534, 0.8636),
        Published("authors' PyTorch code, multi-scale", "val", 0.7963, 0.9550, 0.8677),
        Published("paper", "test", 0.826),
    ),
    "pspnet_cityscapes": (
        Published("authors' PyTorch code, single scale", "val", 0.7863, 0.9614, 0.8577),
        Published("authors' PyTorch code, multi-scale", "val", 0.7929, 0.9638, 0.8591),
        Published("paper", "test", 0.784),
    ),
}
