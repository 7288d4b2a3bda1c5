import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setModel } from '../../../sdk/javascript/testing.js';

const { Tensor, answer } = await import('../../../sdk/javascript/index.js');
const { App } = await import('../app.js');

const ask = async (body) => {
  const response = await answer(new App(), new Request('http://test/', { method: 'POST', body }));
  return [response.status, await response.json()];
};

test('the most probable digit is named', async () => {
  setModel('digits', ({ pixels }) => {
    assert.deepEqual([pixels.type, pixels.dimensions], ['FP32', [1, 64]]);
    return { probabilities: Tensor.f32([1, 10], [0, 0, 0, 0, 0, 0, 0, 0.75, 0.25, 0]) };
  });
  const pixels = JSON.stringify({ pixels: new Array(64).fill(0.5) });
  assert.deepEqual(await ask(pixels), [200, { digit: 7, probability: 0.75 }]);
});

test('what is no image is refused', async () => {
  setModel('digits', () => ({}));
  for (const pixels of [undefined, [1], new Array(64).fill('1x'), new Array(64).fill(2), new Array(64).fill(null)]) {
    const [status, body] = await ask(JSON.stringify({ pixels }));
    assert.equal(status, 400, JSON.stringify(pixels));
    assert.match(body.error, /64 numbers/);
  }
  assert.equal((await ask('{'))[0], 400);
  assert.equal((await ask('null'))[0], 400);
});
