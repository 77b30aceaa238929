_base_ = ['./_vit-base-p16.py', './_vit_4xb256-90e_in1k.py']
