import assert from 'node:assert/strict';
import { test } from 'node:test';
// First: it answers the platform's imports for everything that is imported after it.
import { setModel } from '../sdk/testing.js';

const { Tensor, answer } = await import('../sdk/index.js');
const { App } = await import('../app.js');

const ask = async (body) => {
  const response = await answer(new App(), new Request('http://test/', { method: 'POST', body }));
  return [response.status, await response.json()];
};

test('the most probable species is named', async () => {
  setModel('iris', ({ features }) => {
    assert.deepEqual([features.type, features.dimensions], ['FP32', [1, 4]]);
    return { probabilities: Tensor.f32([1, 3], [0.25, 0.125, 0.625]) };
  });
  assert.deepEqual(await ask('{"features":[6.3,3.4,5.6,2.4]}'), [200, { species: 'virginica', probability: 0.625 }]);
});

test('a wrong request is refused', async () => {
  setModel('iris', () => ({}));
  for (const body of ['', '[]', '{}', '{"features":[1,2,3]}', '{"features":[1,2,3,"4"]}', '{"features":[1,2,3,1e999]}']) {
    assert.equal((await ask(body))[0], 400, body);
  }
});
