"""What people type, and what they mean: fields of the config without their section, words of other tools."""

import difflib
from collections.abc import Collection, Sequence

MAX_HINTS = 4  # words that a hint names
CUTOFF = 0.75  # of difflib: how alike words must be
# By a word of another tool: fields of the config, and flags.
SYNONYMS = {
  'arch': ['model.name'], 'architecture': ['model.name'], 'net': ['model.name'], 'network': ['model.name'],
  'precision': ['model.dtype'], 'amp': ['model.dtype'], 'bf16': ['model.dtype'], 'fp16': ['model.dtype'],
  'weights': ['init.source'], 'pretrained': ['init.source'], 'init_from': ['init.source'],
  'dataset': ['data.name', 'data.path'], 'data_path': ['data.path'], 'folder': ['data.path'], 'root': ['data.path'],
  'data_root': ['data.path', 'data.data_dir'], 'train_dir': ['data.path'], 'batch': ['data.batch_size'],
  'bs': ['data.batch_size'], 'train_batch_size': ['data.batch_size'], 'val_split': ['data.val'],
  'validation_split': ['data.val'], 'size': ['data.image_size'], 'img_size': ['data.image_size'],
  'resolution': ['data.image_size'], 'num_workers': ['data.workers'], 'max_train_samples': ['data.limit'],
  'learning_rate': ['optim.lr'], 'base_lr': ['optim.lr'], 'optimizer': ['optim.name'], 'opt': ['optim.name'],
  'wd': ['optim.weight_decay'], 'scheduler': ['optim.schedule'], 'lr_scheduler': ['optim.schedule'],
  'lr_schedule': ['optim.schedule'], 'warmup': ['optim.warmup_epochs'], 'freeze': ['optim.frozen'],
  'num_epochs': ['train.epochs'], 'max_epochs': ['train.epochs'], 'epoch': ['train.epochs'],
  'random_seed': ['train.seed', 'data.seed'], 'early_stopping': ['train.patience'], 'ema_decay': ['train.ema'],
  'grad_accum': ['train.accumulate'], 'gradient_accumulation_steps': ['train.accumulate'],
  'horizontal_flip': ['augment.flip'], 'hflip': ['augment.flip'],
  'output': ['--workdir'], 'output_dir': ['--workdir'], 'out': ['--workdir'], 'out_dir': ['--workdir'],
  'logdir': ['--workdir'], 'log_dir': ['--workdir'], 'save_dir': ['--workdir'], 'model_dir': ['--workdir'],
  'run_dir': ['--workdir'], 'resume': ['--workdir'], 'checkpoint_dir': ['--workdir'], 'cfg': ['--config'],
  'config_file': ['--config'], 'num_seeds': ['--seeds'], 'repeats': ['--seeds'], 'verbose': ['--debug'],
}  # fmt: skip


def find(word: str, fields: Sequence[str], flags: Collection[str] = ()) -> list[str]:
  """Return what ``word`` may mean: the words of ``fields`` and, after two dashes, ``flags``; none where none is near.

  Args:
    word: what was typed, without the dashes before it.
    fields: of the config, such as ``'train.epochs'``.
    flags: of the command, without dashes.
  """
  name = word.lower().replace('-', '_')
  if exact := _exact(name, fields, flags):
    return exact
  known = [*fields] if '.' in name else [*{f.partition('.')[2] for f in fields}, *flags, *SYNONYMS]
  close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=CUTOFF)
  return _exact(close[0], fields, flags) if close else []


def _exact(name: str, fields: Sequence[str], flags: Collection[str]) -> list[str]:
  if name in flags:
    return [f'--{name}']
  if name in fields:
    return [name]
  if f'{name}.name' in fields:  # a section
    return [f'{name}.name', *(['data.path'] if name == 'data' else [])]
  matches = [field for field in fields if field.partition('.')[2] == name] or SYNONYMS.get(name, [])
  return [each for each in matches if each in fields or each.removeprefix('--') in flags]


def sentence(words: Sequence[str], value: str = '') -> str:
  """Return ``'did you mean --config.train.epochs=3?'`` of what ``find`` returns; nothing where that is nothing.

  Args:
    words: fields of the config, or flags.
    value: what was typed for it; three dots stand for none.
  """
  full = [f'{each if each.startswith("--") else f"--config.{each}"}={value or "..."}' for each in words[:MAX_HINTS]]
  return f'did you mean {" or ".join(full)}?' if full else ''
