"""The section ``train`` of a config."""

from typing import NamedTuple

from jaxres.errors import InputError, check_range


class Options(NamedTuple):
  """How long and how to train; the fields of the section ``train``.

  Attributes:
    epochs: passes over the training examples; may be fractional.
    task: what is learned: a name of ``tasks.TASKS``, or your own, ``package.module:name``.
    loss: ``'softmax_xent'``, or ``'sigmoid_xent'``: binary cross-entropy, the mean over the classes.
    label_smoothing: the share of the target that is spread over all classes.
    target_threshold: of ``'sigmoid_xent'``: targets above it become 1 and the others 0, so that both classes of a mixed
      image are targets; 0 leaves them as they are.
    seed: of the initial parameters and of the augmentation.
    eval_every_epochs: evaluate, and save, this often and at the end.
    eval_batch_size: examples an evaluation step; rounded up to a multiple of the devices.
    patience: stop after this many evaluations with no better validation metric (of the moving average, where there is
      one); 0 never stops.
    log_every_steps: steps between rows of training metrics.
    accumulate: each batch goes through the model in this many equal parts, one after the other, for one update; that
      takes less memory. Each part has its own BatchNorm statistics.
    scan_steps: steps of one call of the program, a ``lax.scan``; 0 is 1 on a CPU or with ``data.pipeline=stream``, else
      10. The result is the same for every value.
    ema: decay per step of a moving average of the weights, evaluated beside them; ``state.update_ema`` says how it
      starts. 0 keeps none.
    shard_optimizer: each device holds a part of the optimizer's state and of the moving average, not all of it: less
      memory, the same result.
    recalibrate_bn: before every evaluation the running statistics of BatchNorm, of the moving average too, become the
      averages over this many first training batches, for where few steps or small batches left them far off.
    max_rollbacks: where a step is not finite, go back to the last checkpoint and on with half the learning rate, at
      most this many times; 0 stops.
    spike_factor: warn where a row's training loss is more than this many times the median of the rows before it; 0
      never does.
    deterministic: on a GPU, use only operations that give the same bits every time; a CPU does so anyway. It is set for
      the process.
    dry_run: two steps, an evaluation of at most two batches, a save; in ``<workdir>/dry_run``.
    overfit_one_batch: 200 steps on the first batch alone, without augmentation: what can learn reaches 100 %.
  """

  epochs: float = 30.0
  task: str = 'classification'
  loss: str = 'softmax_xent'
  label_smoothing: float = 0.0
  target_threshold: float = 0.0
  seed: int = 0
  eval_every_epochs: float = 1.0
  eval_batch_size: int = 500
  patience: int = 0
  log_every_steps: int = 50
  accumulate: int = 1
  scan_steps: int = 0
  ema: float = 0.0
  shard_optimizer: bool = False
  recalibrate_bn: int = 0
  max_rollbacks: int = 0
  spike_factor: float = 0.0
  deterministic: bool = False
  dry_run: bool = False
  overfit_one_batch: bool = False


POSITIVE = ('epochs', 'eval_every_epochs', 'eval_batch_size', 'log_every_steps')
COUNTS = ('scan_steps', 'patience', 'max_rollbacks')
MAX_RECALIBRATE = 100_000  # batches before every evaluation


def check(options: Options) -> None:
  """Raise InputError where a field is out of its range, whatever the data and the model."""
  for name in POSITIVE:
    check_range(f'train.{name}', getattr(options, name), above=0)
  for name in COUNTS:
    check_range(f'train.{name}', getattr(options, name), low=0)
  check_range('train.recalibrate_bn', options.recalibrate_bn, low=0, high=MAX_RECALIBRATE)
  check_range('train.seed', options.seed, low=0, below=2**63)
  check_range('train.ema', options.ema, low=0, below=1)
  if options.spike_factor and not 1.0 < options.spike_factor < float('inf'):
    raise InputError('train.spike_factor', expected='0, or a factor above 1', found=options.spike_factor)
