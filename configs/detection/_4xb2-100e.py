# The paper's recipe for COCO: 4 GPUs, batch 8, Adam 4e-5, 100 epochs. The paper names no schedule of the learning rate;
# the steps are mmdet's customary ones, at two thirds and eleven twelfths.
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=100, val_interval=5)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=4e-5))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=100, milestones=[67, 92], gamma=0.1),
]
auto_scale_lr = dict(enable=False, base_batch_size=8)
