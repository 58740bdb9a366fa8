"""Which tensors of a file are the network: the dict that has them, their prefix, what is skipped unjudged."""

import itertools
import re
from collections.abc import Mapping, Sequence, Set
from typing import Any, NamedTuple

from jaxres.errors import InputError
from jaxres.weights import layouts, pickles, safetensors
from jaxres.weights.layouts import Network
from jaxres.weights.names import HEADS, describe_value

WRAPPERS = (
  'state_dict', 'model_state_dict', 'model_state', 'model', 'net', 'network', 'weights', 'params',
  'state_dict_ema', 'model_ema', 'ema_state_dict', 'ema',
)  # fmt: skip
KINDS = (pickles.Tensor, safetensors.Entry)
MAX_NAME = 500  # characters; those of public networks have up to 80
MAX_DICTS = 1000  # that are looked into
LISTED = 5  # networks, in an error
_DOT = re.compile(r'\.')
HEAD_NAMES = {f'{head}.{leaf}' for head in HEADS for leaf in ('weight', 'bias')}


class Selection(NamedTuple):
  """The tensors of one network.

  Attributes:
    tensors: what the file says of each, by torchvision's name; whatever ``skipped`` has may be no tensor at all.
    skipped: names, as in the file and as in ``tensors``, that a pattern matches.
    left_out: how many tensors belong to something else than the network that was chosen.
  """

  tensors: dict[str, Any]
  skipped: frozenset[str]
  left_out: int


def select(content: Any, where: str, skip: Sequence[str] = (), prefix: str | None = None) -> Selection:
  """Return the tensors of the network in ``content``, by torchvision's names.

  Args:
    content: of a file: a state dict, or what wraps one, also twice, under one of ``WRAPPERS`` or any other key.
    where: the file, for errors.
    skip: regular expressions. A name that one matches, as it is in the file or without its prefix, is not judged.
    prefix: of the network, such as ``'ema_model'``, with the keys of the dicts that it is in (``'teacher.backbone'``)
      where there are several. What does not belong to it is left out. None: there must be one network.

  Raises:
    InputError: there is no state dict or no such network, or several; or something in it is no tensor.
  """
  patterns = compile_patterns(skip, where)
  tensors, network = _choose(content, where, patterns, prefix)
  _check_names(tensors, where)
  inner: Set[str] = frozenset()
  if prefix is not None and network:  # another network may be called as a part of this one
    prefixes = {other.prefix for other in _networks(tensors, patterns)} - {network.prefix}
    inner = frozenset(other for other in prefixes if other.startswith(network.prefix))
  by_name, left_out = _strip(tensors, network, patterns, where, inner, exclusive=prefix is not None)
  shapes = {short: value.shape if isinstance(value, KINDS) else () for short, (_, value) in by_name.items()}
  known = layouts.to_torchvision(shapes, network.layout) if network else {short: short for short in by_name}
  result, skipped = {}, set()
  for short, (raw, value) in by_name.items():
    name = known[short]
    matches = [_matches(patterns, word) for word in (raw, short, name)]
    if any(matches):
      skipped |= {raw, short, name}
    is_outside = bool(network and network.prefix) and raw == short and short not in HEAD_NAMES
    if any(matches) and (is_outside or not any(matches[1:])):
      continue
    if name in result:
      raise InputError(where, f'two tensors are called {describe_value(name)}', fix=_how_to_choose())
    if not any(matches) and not isinstance(value, KINDS):
      problem = f'{describe_value(raw)} is no tensor but a {type(value).__name__}'
      raise InputError(where, problem, expected='a state dict', fix='--skip (init.skip) leaves it out')
    result[name] = value
  return Selection(result, frozenset(skipped), left_out)


def compile_patterns(skip: Sequence[str], where: str) -> list[re.Pattern[str]]:
  """Return the regular expressions of ``skip``.

  Raises:
    InputError: one is none.
  """
  patterns = []
  for pattern in skip:
    try:
      patterns.append(re.compile(pattern))
    except re.error as error:
      raise InputError(where, f'skip: {pattern!r} is no regular expression: {error}') from None
  return patterns


def _matches(patterns: Sequence[re.Pattern[str]], name: str) -> bool:
  return any(pattern.fullmatch(name) for pattern in patterns)


def _choose(
  content: Any, where: str, patterns: Sequence[re.Pattern[str]], prefix: str | None
) -> tuple[dict[str, Any], Network | None]:
  """Return the dict in ``content`` that holds the network, and where in it the network is."""
  keys, tensors = _unwrap(content)
  dicts = _state_dicts(content)
  if prefix is None and _has_tensors(tensors):
    networks = _networks(tensors, patterns)
    candidates = [(keys, tensors, network) for network in networks]
    if not candidates:  # recognition says what is missing
      return tensors, None
  else:
    candidates = [(at, tensors, network) for at, tensors in dicts for network in _networks(tensors, patterns)]
  if not candidates:
    kind = f'a {type(content).__name__}'
    if isinstance(content, dict):
      kind = 'keys ' + (', '.join(describe_value(key, 30) for key in itertools.islice(content, LISTED)) or 'none')
    expected = 'one, or one under "state_dict", "model" or another key'
    raise InputError(where, 'it holds no state dict of a ResNet', expected=expected, found=kind)
  chosen = candidates if prefix is None else _match_prefix(candidates, prefix.strip('.'), keys)
  if len(chosen) == 1:
    return chosen[0][1:]
  inner = all(at == keys for at, _, _ in candidates)
  labels = [network.prefix if inner else _label(at, network) for at, _, network in chosen or candidates]
  listed = ', '.join(repr(describe_value(label, 45)) for label in labels[:LISTED]) + (
    ' ...' if len(labels) > LISTED else ''
  )
  if prefix is not None and not chosen:
    raise InputError(where, f'no network of prefix {describe_value(prefix)!r} there', expected=f'one of {listed}')
  raise InputError(where, f'it holds {len(labels)} networks, with prefixes {listed}', fix=_how_to_choose())


def _how_to_choose() -> str:
  return 'choose one by --prefix (init.prefix)'


def _label(keys: tuple[str, ...], network: Network) -> str:
  return '.'.join([*keys, network.prefix])


def _match_prefix(candidates: Sequence[Any], prefix: str, keys: tuple[str, ...]) -> list[Any]:
  """Return the candidates that ``prefix`` may mean: those that it means most exactly."""
  labels = [_label(at, network).strip('.') for at, _, network in candidates]
  inner = [network.prefix.strip('.') if at == keys else None for at, _, network in candidates]
  ranks = (
    [name == prefix for name in inner],
    [label == prefix for label in labels],
    [label.startswith(f'{prefix}.') for label in labels] if prefix else [],
    [label.endswith(f'.{prefix}') for label in labels] if prefix else [],
  )
  for rank in ranks:
    if any(rank):
      return [candidate for candidate, matches in zip(candidates, rank, strict=True) if matches]
  return []


def _unwrap(content: Any) -> tuple[tuple[str, ...], Any]:
  """Return the keys of ``WRAPPERS`` that lead to the state dict in ``content``, and it."""
  keys: tuple[str, ...] = ()
  for _ in range(3):
    key = next((key for key in WRAPPERS if isinstance(content, dict) and isinstance(content.get(key), dict)), None)
    if key is None:
      break
    keys, content = (*keys, key), content[key]
  return keys, content


def _has_tensors(content: Any) -> bool:
  return isinstance(content, dict) and any(isinstance(value, KINDS) for value in content.values())


def _state_dicts(content: Any) -> list[tuple[tuple[str, ...], dict[str, Any]]]:
  """Return the dicts in ``content`` that have tensors, after the keys that lead to them; each dict once."""
  result: list[tuple[tuple[str, ...], dict[str, Any]]] = []
  seen: set[int] = set()
  left: list[tuple[tuple[str, ...], Any]] = [((), content)]
  for keys, value in left:  # it grows
    if not isinstance(value, dict) or id(value) in seen or len(seen) >= MAX_DICTS:
      continue
    seen.add(id(value))
    if _has_tensors(value):
      result.append((keys, value))
    if len(keys) < 3:
      dicts = [(key, inner) for key, inner in value.items() if type(key) is str and isinstance(inner, dict)]
      left += [((*keys, key), inner) for key, inner in dicts if len(key) <= MAX_NAME]  # each label repeats its keys
  return result


def _networks(tensors: Mapping[Any, Any], patterns: Sequence[re.Pattern[str]]) -> list[Network]:
  """Return the networks in ``tensors``, but for those that are skipped as long as there is another."""
  names = [name for name in tensors if type(name) is str and len(name) <= MAX_NAME]
  rest = [name for name in names if not _matches(patterns, name)]
  return layouts.find(rest) or layouts.find(names)


def _check_names(tensors: Mapping[Any, Any], where: str) -> None:
  if len(tensors) > pickles.MAX_TENSORS:
    raise InputError(where, f'refused: a state dict of {len(tensors):,} entries, more than {pickles.MAX_TENSORS:,}')
  for name in tensors:
    if type(name) is not str:
      raise InputError(where, f'a tensor is called by a {type(name).__name__}', expected='a state dict')
    if len(name) > MAX_NAME:
      raise InputError(where, f'refused: {describe_value(name)} is the name of a tensor, of {len(name):,} characters')


def _strip(
  tensors: Mapping[str, Any],
  network: Network | None,
  patterns: Sequence[re.Pattern[str]],
  where: str,
  inner: Set[str],
  *,
  exclusive: bool,
) -> tuple[dict[str, tuple[str, Any]], int]:
  """Return ``{name without the prefix: (name, tensor)}``, and how many ``exclusive`` left out.

  ``inner`` are the prefixes of other networks in this one. A name that has only the first words of the prefix, such as
  ``module.head.fc.weight``, loses those; with ``exclusive`` only a classifier, where the network has none, may be.
  """
  prefix = network.prefix if network else ''
  words = prefix.split('.')[:-1]
  starts = ['.'.join(words[: i + 1]) + '.' for i in range(len(words))][::-1]
  result: dict[str, tuple[str, Any]] = {}
  left_out = 0
  has_head = any(prefix + head in tensors for head in HEAD_NAMES)
  for name, value in tensors.items():
    if name == 'n_averaged':  # torch.optim.swa_utils
      continue
    start = next((start for start in starts if name.startswith(start)), '')
    short = name.removeprefix(start)
    is_other = start != prefix and (has_head or short not in HEAD_NAMES)
    if exclusive and (is_other or _is_in(name, inner)):
      left_out += 1
      continue
    if short in result:
      if _matches(patterns, name):
        continue
      if not _matches(patterns, result[short][0]):
        raise InputError(
          where, f'two tensors are called {describe_value(short)} without their prefix', fix=_how_to_choose()
        )
    result[short] = name, value
  return result, left_out


def _is_in(name: str, prefixes: Set[str]) -> bool:
  """Return whether ``name`` starts with one of ``prefixes``, each of which ends with a dot: looked up, not tried."""
  return any(name[: dot.end()] in prefixes for dot in _DOT.finditer(name)) if prefixes else False
