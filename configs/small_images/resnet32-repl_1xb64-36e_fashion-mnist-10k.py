_base_ = './resnet32_1xb64-36e_fashion-mnist-10k.py'
model = dict(backbone=dict(repl=dict(policy='interval', every=4)))
