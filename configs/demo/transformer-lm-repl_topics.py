_base_ = './transformer-lm_topics.py'
model = dict(backbone=dict(repl=dict(policy='interval', every=4, mlp_fusion=True)))
