"""Training: the loop and what it is made of."""

from jaxres.train.loop import train_and_evaluate

__all__ = ['train_and_evaluate']
