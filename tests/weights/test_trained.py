"""Weights that torch has trained, on real images."""

import jax
import numpy as np
import pytest

from jaxres import data, models, weights
from jaxres.data.augment import normalize


@pytest.mark.slow
@pytest.mark.torch
def test_top1_is_torchs_example_by_example(tfds_dir, tmp_path, reference):
  import torch

  dataset = data.load('cifar10', data_dir=tfds_dir, batch_size=128, limit=5000)
  arrays = {
    name: {k: np.asarray(v) for k, v in dataset[i].device_data.items()} for i, name in ((0, 'train'), (2, 'test'))
  }
  pixels = lambda split: np.array(normalize(arrays[split]['image'], dataset.info.mean, dataset.info.std))
  tensor = lambda split: torch.from_numpy(np.ascontiguousarray(pixels(split).transpose(0, 3, 1, 2)))
  torch.manual_seed(0)
  torch.set_num_threads(1)
  network = reference.create('resnet20', 10)
  optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
  images, labels = tensor('train'), torch.from_numpy(arrays['train']['label']).long()
  for start in range(0, 5000, 100):
    loss = torch.nn.functional.cross_entropy(network(images[start : start + 100]), labels[start : start + 100])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
  torch.save(network.state_dict(), tmp_path / 'trained.pth')

  network.eval()
  with torch.no_grad():
    expected = np.concatenate([network(part).numpy() for part in tensor('test').split(500)])
  state_dict = weights.read(tmp_path / 'trained.pth')
  actual = weights.recognize(state_dict)
  model = models.create(actual.name, **actual.options, dtype='float32')
  variables = weights.to_variables(state_dict, model)
  run = jax.jit(lambda v, x: model.apply(v, x, train=False))
  ours = np.concatenate([run(variables, part) for part in np.split(pixels('test'), 20)])
  assert len(ours) == 10_000
  np.testing.assert_allclose(ours, expected, atol=1e-4 * np.abs(expected).max())
  top1 = [(logits.argmax(1) == arrays['test']['label']).mean() for logits in (ours, expected)]
  assert (ours.argmax(1) == expected.argmax(1)).all()
  assert top1[0] == top1[1] > 0.25
