# Trained on CIFAR-10, scored on the images of STL-10 (2024 paper, supplement A.2), resized to CIFAR-10's size. The
# classes have CIFAR-10's order, by STL-10's names. Its monkeys are left out, as CIFAR-10 has none; STL-10 has no frogs.
_base_ = './_cifar10.py'

names = ['airplane', 'car', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck']
stl10_pipeline = [
    # Like torchvision's, it smooths what it makes smaller.
    dict(type='Resize', scale=(32, 32), backend='pillow', interpolation='bilinear'),
    dict(type='PackInputs'),
]
stl10 = dict(type='repl_mm.STL10', data_root='data/stl10', classes=names, pipeline=stl10_pipeline)
# A validation's score is what a study reports.
val_dataloader = dict(dataset=stl10)
test_dataloader = dict(dataset=stl10)
