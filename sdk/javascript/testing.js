/**
 * Stands in for the platform in Node: a test says what a model answers.
 *
 *     import { setModel } from '../sdk/testing.js';
 *     const { App } = await import('../app.js');       // after testing.js, hence not a static import
 *
 *     setModel('digits', (inputs) => ({ probabilities: Tensor.f32([1, 10], [...]) }));
 *
 * It answers the imports `wasi:...` with modules of the shape that componentize-js gives a component, so that a test
 * goes through the wrapper's own encoding. Only for tests: a component cannot import it.
 */
import { register } from 'node:module';

const models = new Map();
const variables = new Map();

class PlatformTensor {
  #parts;

  constructor(dimensions, type, data) {
    if (!(dimensions instanceof Uint32Array) || !(data instanceof Uint8Array)) {
      throw new TypeError('the bindings take a Uint32Array and a Uint8Array');
    }
    this.#parts = [dimensions, type, data];
  }

  dimensions() {
    return this.#parts[0];
  }

  ty() {
    return this.#parts[1];
  }

  data() {
    return this.#parts[2];
  }
}

/** What a model throws in a test: an error code of wasi-nn, such as `timeout`, and the platform's text. */
export function failure(code, text) {
  return Object.assign(new Error(text), { payload: { code: () => code, data: () => text } });
}

/** Makes `Model.load(name)` succeed, with a model that answers as `compute(inputs)` says: tensors by name, both ways. */
export function setModel(name, compute) {
  models.set(name, compute);
}

/** What `environment()` gives. */
export function setEnvironment(values) {
  variables.clear();
  for (const [name, value] of Object.entries(values)) variables.set(name, value);
}

function loadByName(name) {
  const compute = models.get(name);
  if (!compute) throw failure('not-found', 'no such model in this test; set it with setModel');
  const context = {
    compute(inputs) {
      const named = Object.fromEntries(
        inputs.map(([input, tensor]) => [input, seen(tensor.dimensions(), tensor.ty(), tensor.data())]),
      );
      return Object.entries(compute(named)).map(([output, tensor]) => [
        output,
        new PlatformTensor(Uint32Array.from(tensor.dimensions), tensor.type, tensor.data),
      ]);
    },
  };
  return { initExecutionContext: () => context };
}

// The class of the wrapper, which imports this module's names; hence it is fetched late.
let Tensor;
function seen(...parts) {
  return new Tensor(...parts);
}

const unsupported = class {
  constructor() {
    throw new Error('there is no HTTP in a unit test; call answer(app, request) instead');
  }
};

globalThis[Symbol.for('fnctl.testing')] = {
  'wasi:nn/graph': { loadByName },
  'wasi:nn/tensor': { Tensor: PlatformTensor },
  'wasi:cli/environment': { getEnvironment: () => [...variables] },
  'wasi:http/types': {
    Fields: unsupported,
    OutgoingBody: unsupported,
    OutgoingResponse: unsupported,
    ResponseOutparam: unsupported,
  },
};

const hooks = `
  const exported = {
    'wasi:nn/graph': ['loadByName'],
    'wasi:nn/tensor': ['Tensor'],
    'wasi:cli/environment': ['getEnvironment'],
    'wasi:http/types': ['Fields', 'OutgoingBody', 'OutgoingResponse', 'ResponseOutparam'],
  };
  export function resolve(specifier, context, next) {
    return specifier.startsWith('wasi:') ? { url: specifier, shortCircuit: true } : next(specifier, context);
  }
  export function load(url, context, next) {
    if (!url.startsWith('wasi:')) return next(url, context);
    const name = url.split('@')[0];
    const from = 'globalThis[Symbol.for("fnctl.testing")][' + JSON.stringify(name) + ']';
    const source = (exported[name] ?? []).map((item) => 'export const ' + item + ' = ' + from + '.' + item + ';').join('');
    return { format: 'module', source, shortCircuit: true };
  }`;
register(`data:text/javascript,${encodeURIComponent(hooks)}`, import.meta.url);
({ Tensor } = await import('./tensor.js'));
