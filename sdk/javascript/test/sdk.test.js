import assert from 'node:assert/strict';
import { test } from 'node:test';
import { failure, setEnvironment, setModel } from '../testing.js';

const { BadRequest, Model, ModelError, Tensor, answer, environment, serve } = await import('../index.js');

test('elements come back as they went in, little-endian', () => {
  const tensor = Tensor.f32([2, 2], [1, -2.5, 3, 4]);
  assert.deepEqual(Array.from(tensor.data.subarray(0, 8)), [0, 0, 0x80, 0x3f, 0, 0, 0x20, 0xc0]);
  assert.deepEqual(tensor.elements(), Float32Array.of(1, -2.5, 3, 4));
  assert.deepEqual(Tensor.i64([], [16000]).elements(), BigInt64Array.of(16000n));
  assert.deepEqual(Array.from(Tensor.i32([1], [-2]).data), [0xfe, 0xff, 0xff, 0xff]);
  assert.deepEqual(Tensor.f64([1], [0.1]).elements(), Float64Array.of(0.1));
  assert.deepEqual(new Tensor([2], 'FP16', Uint8Array.of(0, 60, 0, 0)).dimensions, [2]);
});

test('a shape that the elements do not fill is refused', () => {
  assert.throws(() => Tensor.u8([2, 2], [1, 2, 3]), /3 elements do not fill a tensor of shape \[2,2\]/);
  assert.throws(() => Tensor.f32([-1], []), /a dimension must be/);
  assert.throws(() => Tensor.f32([2 ** 32], []), /a dimension must be/);
  assert.throws(() => new Tensor([1], 'F32', new Uint8Array(4)), /is no tensor type/);
});

test('an element that does not fit its type is refused', () => {
  assert.throws(() => Tensor.u8([1], [256]), /256 is no U8 number/);
  assert.throws(() => Tensor.i32([1], [0.5]), /0.5 is no I32 number/);
  assert.throws(() => Tensor.f32([1], ['1']), /1 is no FP32 number/);
  assert.throws(() => Tensor.i64([1], [2n ** 63n]), /is no I64 number/);
  assert.throws(() => Tensor.of('BF16', [1], [1]), /no BF16 numbers/);
});

test('a model sees named tensors and gives named tensors', () => {
  setModel('double', (inputs) => {
    assert.equal(inputs.x.type, 'I32');
    assert.deepEqual(inputs.x.dimensions, [1, 3]);
    return { y: Tensor.i32([1, 3], inputs.x.elements().map((x) => 2 * x)) };
  });
  const outputs = Model.load('double').run({ x: Tensor.i32([1, 3], [1, 2, 3]) });
  assert.deepEqual(outputs.y.elements(), Int32Array.of(2, 4, 6));
  assert.throws(() => Model.load('double').run({ x: [1, 2, 3] }), BadRequest);
});

test('errors say their kind and the next step', () => {
  assert.throws(() => Model.load('absent'), (error) => {
    assert.ok(error instanceof ModelError);
    assert.equal(error.kind, 'not-found');
    assert.match(error.message, /^not-found: the model 'absent': .*; declare the model under \[models\]/);
    return true;
  });
  setModel('slow', () => {
    throw failure('timeout', 'the deadline passed');
  });
  const slow = Model.load('slow');
  assert.throws(() => slow.run({}), (error) => error.status === 504 && error.kind === 'timeout');
});

test('an app answers JSON, its errors with their status, and bugs without details', async () => {
  const ask = (handle) => answer({ handle }, new Request('http://test/'));
  const fine = await ask(() => ({ a: 1 }));
  assert.equal(fine.headers.get('content-type'), 'application/json');
  assert.deepEqual([fine.status, await fine.json()], [200, { a: 1 }]);
  const wrong = await ask(() => {
    throw new BadRequest('send a number');
  });
  assert.deepEqual([wrong.status, await wrong.json()], [400, { error: 'send a number' }]);
  const silenced = console.error;
  console.error = () => {};
  const broken = await ask(() => undefined.secret);
  console.error = silenced;
  assert.equal(broken.status, 500);
  assert.doesNotMatch(await broken.text(), /secret/);
});

test('an app starts once, and a failed start is a text', () => {
  let starts = 0;
  const { lifecycle } = serve(class { constructor() { starts += 1; } });
  lifecycle.init();
  lifecycle.init();
  assert.equal(starts, 1);
  const failing = serve(class { constructor() { Model.load('absent'); } });
  assert.throws(() => failing.lifecycle.init(), (thrown) => typeof thrown === 'string' && thrown.includes('not-found'));
});

test('the environment is an object', () => {
  setEnvironment({ THRESHOLD: '0.5' });
  assert.deepEqual(environment(), { THRESHOLD: '0.5' });
});
