_base_ = './vit-small-p16_finetune_1xb512-100e_stl10.py'
model = dict(
    backbone=dict(
        repl=dict(policy='interval', every=4, mlp_fusion=True),
        # With the same sites; one that was trained end to end loads too.
        init_cfg=dict(checkpoint='work_dirs/vit-small-p16-repl_4xb256-90e_in1k/epoch_90.pth'),
    )
)
