"""A real browser without a window, over the DevTools protocol: what a page is to eyes, a keyboard, a screen reader."""

import base64
import json
import os
import pathlib
import select
import shutil
import signal
from typing import Any

NAMES = ('chromium', 'google-chrome', 'chrome', 'chrome-headless-shell')
PROGRAM = next(filter(None, map(shutil.which, NAMES)), '')
SECONDS = 120  # to wait for an answer, on a machine that is busy
KEYS = {'Tab': 9, 'Enter': 13, 'End': 35, 'Home': 36, 'ArrowLeft': 37, 'ArrowRight': 39}


class Browser:
  """A browser with one page; all that it reports of itself is kept in ``events``."""

  def __init__(self, profile: pathlib.Path):
    theirs_in, self.writer = os.pipe()
    self.reader, theirs_out = os.pipe()
    words = ['--headless', '--no-sandbox', '--disable-gpu', '--remote-debugging-pipe', f'--user-data-dir={profile}']
    actions = [(os.POSIX_SPAWN_DUP2, theirs_in, 3), (os.POSIX_SPAWN_DUP2, theirs_out, 4)]  # where it looks for them
    actions += [(os.POSIX_SPAWN_OPEN, n, os.devnull, os.O_RDWR, 0) for n in (1, 2)]
    self.process = os.posix_spawn(PROGRAM, [PROGRAM, *words], os.environ, file_actions=actions)
    for end in (theirs_in, theirs_out):
      os.close(end)
    self.received, self.count, self.session = b'', 0, {}
    self.events: list[dict[str, Any]] = []
    target = self.call('Target.createTarget', url='about:blank')
    self.session = {'sessionId': self.call('Target.attachToTarget', flatten=True, **target)['sessionId']}
    for domain in ('Page', 'Runtime', 'Log', 'Network', 'Accessibility'):
      self.call(f'{domain}.enable')

  def __enter__(self) -> 'Browser':
    return self

  def __exit__(self, *_: object) -> None:
    os.kill(self.process, signal.SIGKILL)
    os.waitpid(self.process, 0)
    for end in (self.reader, self.writer):
      os.close(end)

  def call(self, method: str, **params: Any) -> dict[str, Any]:
    """Return the answer to a call of the protocol."""
    self.count += 1
    os.write(
      self.writer, json.dumps({'id': self.count, 'method': method, 'params': params} | self.session).encode() + b'\0'
    )
    answer = self._wait(lambda message: message.get('id') == self.count)
    assert 'error' not in answer, answer
    return answer['result']

  def _wait(self, is_it: Any) -> dict[str, Any]:
    """Return the next message that ``is_it``; others are kept."""
    while True:
      while b'\0' not in self.received:
        assert select.select([self.reader], [], [], SECONDS)[0], 'the browser does not answer'
        data = os.read(self.reader, 1 << 20)
        assert data, 'the browser has ended'
        self.received += data
      line, _, self.received = self.received.partition(b'\0')
      message = json.loads(line)
      self.events.append(message)
      if is_it(message):
        return message

  def open(self, path: pathlib.Path, width: int = 1280, height: int = 900, dark: bool = False) -> None:
    """Show a file in a window of that many pixels."""
    self.events.clear()
    phone = width < 600
    size = {'width': width, 'height': height, 'deviceScaleFactor': 2 if phone else 1, 'mobile': phone}
    self.call('Emulation.setDeviceMetricsOverride', **size)
    scheme = {'name': 'prefers-color-scheme', 'value': 'dark' if dark else 'light'}
    self.call('Emulation.setEmulatedMedia', features=[scheme])
    self.call('Page.navigate', url=path.absolute().as_uri())
    self._wait(lambda message: message.get('method') == 'Page.loadEventFired')

  def complaints(self) -> list[str]:
    """Return what the page has written on the console, and its errors."""
    kinds = ('Runtime.consoleAPICalled', 'Runtime.exceptionThrown', 'Log.entryAdded')
    return [json.dumps(event['params']) for event in self.events if event.get('method') in kinds]

  def requests(self) -> list[str]:
    """Return the addresses that the page has asked for."""
    return [e['params']['request']['url'] for e in self.events if e.get('method') == 'Network.requestWillBeSent']

  def ask(self, script: str) -> Any:
    """Return the value of an expression in the page."""
    actual = self.call('Runtime.evaluate', expression=script, returnByValue=True)
    assert 'exceptionDetails' not in actual, actual
    return actual['result'].get('value')

  def press(self, *keys: str) -> None:
    """Press keys, one after the other."""
    for key in keys:
      given = {'key': key, 'code': key, 'windowsVirtualKeyCode': KEYS[key]} | ({'text': '\r'} if key == 'Enter' else {})
      self.call('Input.dispatchKeyEvent', type='keyDown', **given)
      self.call('Input.dispatchKeyEvent', type='keyUp', **given)

  def move(self, x: float, y: float) -> None:
    """Move the pointer."""
    self.call('Input.dispatchMouseEvent', type='mouseMoved', x=x, y=y)

  def aloud(self) -> list[tuple[str, str]]:
    """Return role and name of everything that a screen reader is told of, in order."""
    nodes = [node for node in self.call('Accessibility.getFullAXTree')['nodes'] if not node['ignored']]
    return [(node['role']['value'], node.get('name', {}).get('value', '')) for node in nodes]

  def screenshot(self, path: pathlib.Path) -> None:
    """Write what the window shows as a PNG."""
    path.write_bytes(base64.b64decode(self.call('Page.captureScreenshot', format='png')['data']))
