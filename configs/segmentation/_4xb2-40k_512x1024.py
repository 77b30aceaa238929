# mmseg's recipe: 4 GPUs, batch 8, SGD 0.01, 40,000 iterations.
_base_ = ['./_cityscapes.py', 'mmseg::_base_/schedules/schedule_40k.py']
