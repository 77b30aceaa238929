_base_ = ['./_retinanet_coco.py', './_4xb2-100e.py']
