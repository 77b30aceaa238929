_base_ = ['./_vit-base-p16.py', './_adamw_1xb128-100e_in1k.py']
model = dict(backbone=dict(type='repl_mm.ReplViT'))
