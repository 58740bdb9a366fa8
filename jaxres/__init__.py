"""jaxres: train, fine-tune, understand and ship ResNets in JAX and Flax."""

__version__ = '0.1.0'
