# RetinaNet on a plain Vision Transformer: the simple feature pyramid of ViTDet (Li et al. 2022) over the last map.
# Position embeddings are resized to each image.
_base_ = './retinanet_r50_fpn_8xb2-1x_coco.py'

norm_cfg = dict(type='mmpretrain.LN2d')
mapper = dict(type='ChannelMapper', out_channels=256, norm_cfg=norm_cfg, act_cfg=None)
model = dict(
    data_preprocessor=dict(pad_size_divisor=64),  # the pyramid's pooling rounds down
    backbone=dict(
        _delete_=True,
        type='mmpretrain.VisionTransformer',
        arch='deit-base',
        img_size=224,
        patch_size=16,
        out_type='featmap',
        drop_path_rate=0.1,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://mmassets.onedl.ai/mmclassification/v0/deit/deit-base_pt-16xb64_in1k_20220216-db63c16c.pth',
            prefix='backbone.',
        ),
    ),
    neck=[
        dict(type='repl_mm.SimpleFeaturePyramid', embed_dim=768, rescales=[2, 1, 0.5, 0.25], norm_cfg=norm_cfg),
        dict(**mapper, in_channels=[768] * 4, kernel_size=1),
        dict(**mapper, in_channels=[256] * 4, num_outs=5),
    ],
)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, custom_keys=dict(pos_embed=dict(decay_mult=0.0))),
)
