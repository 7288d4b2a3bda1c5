/** Models, by the names that `function.toml` declares. */

import { loadByName } from 'wasi:nn/graph@0.2.0-rc-2024-10-28';
import { Tensor as PlatformTensor } from 'wasi:nn/tensor@0.2.0-rc-2024-10-28';
import { BadRequest, calling, release } from './error.js';
import { Tensor } from './tensor.js';

/**
 * A loaded model. Loading is cheap: the platform has the model resident and shares it.
 *
 * Load it when an instance starts, not at the top of a module: that code runs while the component is built, where there
 * are no models.
 */
export class Model {
  #context;

  constructor(name, context) {
    this.name = name;
    this.#context = context;
  }

  /** The model that `function.toml` declares under this name. Throws a ModelError if there is none. */
  static load(name) {
    return calling(`the model '${name}'`, () => {
      const graph = loadByName(name);
      try {
        return new Model(name, graph.initExecutionContext());
      } finally {
        release(graph);
      }
    });
  }

  /** Computes: inputs by name in, outputs by name out, in the model's order. Throws a ModelError. */
  run(inputs) {
    const named = Object.entries(inputs).map(([name, value]) => {
      if (!(value instanceof Tensor)) {
        throw new BadRequest(`the input '${name}' of the model '${this.name}' is no Tensor; make one with Tensor.f32`);
      }
      return [name, new PlatformTensor(Uint32Array.from(value.dimensions), value.type, value.data)];
    });
    return calling(`the model '${this.name}'`, () => {
      const outputs = this.#context.compute(named);
      return Object.fromEntries(
        outputs.map(([name, output]) => {
          const tensor = new Tensor(output.dimensions(), output.ty(), output.data());
          release(output);
          return [name, tensor];
        }),
      );
    });
  }
}
