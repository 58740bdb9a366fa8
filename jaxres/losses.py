"""Loss functions: logits and labels to one loss per example."""

import functools
from collections.abc import Callable

import jax
import optax

from jaxres.errors import InputError, nearest

Loss = Callable[[jax.Array, jax.Array], jax.Array]


def softmax_xent(logits: jax.Array, label: jax.Array, *, label_smoothing: float = 0.0) -> jax.Array:
  """Return the softmax cross-entropy.

  Args:
    logits: float32 ``[..., K]``.
    label: int32 ``[...]``, in ``[0, K)``, or distributions over the classes, float32 ``[..., K]``.
    label_smoothing: the share of the target that is spread evenly over all K classes (Szegedy et al. 2015,
      section 7; as ``torch.nn.CrossEntropyLoss``).

  Returns:
    float32 ``[...]``, in nats.
  """
  of_classes = label.ndim == logits.ndim
  hard = (optax.softmax_cross_entropy if of_classes else optax.softmax_cross_entropy_with_integer_labels)(logits, label)
  if label_smoothing == 0.0:
    return hard
  uniform = -jax.nn.log_softmax(logits).mean(axis=-1)
  return (1.0 - label_smoothing) * hard + label_smoothing * uniform


LOSSES: dict[str, Callable[..., jax.Array]] = {'softmax_xent': softmax_xent}


def get(name: str, *, label_smoothing: float = 0.0) -> Loss:
  """Return the loss called ``name``, a function of ``(logits, label)``.

  Raises:
    InputError: ``name`` is unknown, or ``label_smoothing`` is outside [0, 1).
  """
  if name not in LOSSES:
    raise InputError(f'train.loss: unknown loss {name!r}{nearest(name, LOSSES)}')
  if not 0.0 <= label_smoothing < 1.0:
    raise InputError(f'train.label_smoothing: expected a fraction in [0, 1), found {label_smoothing}')
  return functools.partial(LOSSES[name], label_smoothing=label_smoothing)
