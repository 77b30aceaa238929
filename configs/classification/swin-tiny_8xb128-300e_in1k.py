# The host's recipe for ImageNet: batch 1024, AdamW 1e-3, 300 epochs, strong augmentation.
_base_ = 'mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py'

train_dataloader = dict(batch_size=128)
custom_hooks = [dict(type='repl_mm.CostHook')]
