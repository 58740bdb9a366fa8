"""Loss functions: logits and labels, class numbers or target distributions, to one loss per example."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxres.errors import InputError, check_range, check_word

Loss = Callable[[jax.Array, jax.Array], jax.Array]


def softmax_xent(
  logits: Float[Array, '*B K'], label: Int[Array, '*B'] | Float[Array, '*B K'], *, label_smoothing: float = 0.0
) -> Float[Array, '*B']:
  """Return the softmax cross-entropy.

  Args:
    logits: float32 ``[..., K]``.
    label: int32 ``[...]``, in ``[0, K)``; or float32 ``[..., K]``, a distribution over the classes, as mixup makes.
    label_smoothing: the share of the target that is spread evenly over all K classes (Szegedy et al. 2015,
      section 7; as ``torch.nn.CrossEntropyLoss``).

  Returns:
    float32 ``[...]``, in nats.
  """
  if is_integer(label):
    given = optax.softmax_cross_entropy_with_integer_labels(logits, label)
  else:
    given = optax.softmax_cross_entropy(logits, label)
  if label_smoothing == 0.0:
    return given
  uniform = -jax.nn.log_softmax(logits).mean(axis=-1)
  return (1.0 - label_smoothing) * given + label_smoothing * uniform


def sigmoid_xent(
  logits: Float[Array, '*B K'],
  label: Int[Array, '*B'] | Float[Array, '*B K'],
  *,
  label_smoothing: float = 0.0,
  target_threshold: float = 0.0,
) -> Float[Array, '*B']:
  """Return the binary cross-entropy of each class against the rest, the *mean* over the classes.

  As timm's ``BinaryCrossEntropy``, the loss of "ResNet strikes back" (Wightman et al. 2021, section 3.1). Compared
  with a sum, the mean needs a learning rate about K times as high, or an optimizer that does not depend on the scale.

  Args:
    logits: float32 ``[..., K]``.
    label: int32 ``[...]``, in ``[0, K)``, taken as one-hot; or float32 ``[..., K]``, each in ``[0, 1]``.
    label_smoothing: ``s`` makes a target ``t`` into ``(1 - s) * t + s / K``, as timm does.
    target_threshold: then targets above this become 1 and the others 0, so that both classes of a mixed image are
      targets; 0 leaves them as they are.

  Returns:
    float32 ``[...]``, in nats.
  """
  num_classes = logits.shape[-1]
  target = jax.nn.one_hot(label, num_classes) if is_integer(label) else label
  target = (1.0 - label_smoothing) * target + label_smoothing / num_classes
  if target_threshold:
    target = (target > target_threshold).astype(logits.dtype)
  return optax.sigmoid_binary_cross_entropy(logits, target).mean(axis=-1)


def is_integer(label: jax.Array) -> bool:
  """Return whether ``label`` holds class numbers, and not targets of each class."""
  return jnp.issubdtype(label.dtype, jnp.integer)


LOSSES: dict[str, Callable[..., jax.Array]] = {'softmax_xent': softmax_xent, 'sigmoid_xent': sigmoid_xent}


def get(name: str, *, label_smoothing: float = 0.0, target_threshold: float = 0.0) -> Loss:
  """Return the loss called ``name``, a function of ``(logits, label)``.

  Args:
    name: of ``LOSSES``.
    label_smoothing: in [0, 1).
    target_threshold: in [0, 1), of ``sigmoid_xent`` only; 0 has none.

  Raises:
    InputError: ``name`` is unknown, ``label_smoothing`` or ``target_threshold`` is outside [0, 1), or the loss has no
      threshold.
  """
  check_word('train.loss', name, LOSSES, 'loss')
  check_range('train.label_smoothing', label_smoothing, low=0, below=1)
  check_range('train.target_threshold', target_threshold, low=0, below=1)
  if target_threshold and name != 'sigmoid_xent':
    problem = f"only train.loss='sigmoid_xent' has one, not {name!r}"
    raise InputError('train.target_threshold', problem, fix='leave it out')
  threshold = {'target_threshold': target_threshold} if target_threshold else {}
  return functools.partial(LOSSES[name], label_smoothing=label_smoothing, **threshold)
