_base_ = './transformer-lm-12l_1xb64-20e_wikitext2.py'
model = dict(backbone=dict(repl=dict(policy='interval', every=4, mlp_fusion=True)))
