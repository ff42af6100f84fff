"""``sdtree demo``: the checkpoint of a small transformer, from training and back."""

from sdtree.demo.training import Transformer as Transformer
from sdtree.demo.training import loss_of as loss_of
from sdtree.demo.training import train as train
